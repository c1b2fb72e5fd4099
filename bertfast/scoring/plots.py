"""Pictures of an evaluation: the confusion matrix, and how far probabilities are what they say."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from bertfast.escape import mathtext

WRITTEN = 20  # labels up to which each cell says its count


def pictures(report: Mapping[str, Any]) -> dict[str, str]:
    """SVG files by name: ``confusion.svg`` and ``reliability.svg`` of what `Task.report` gave; none
    where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return {}
    found = {}
    if "counts" in report.get("confusion", {}):
        found["confusion.svg"] = _drawn(_confusion, report["confusion"])
    if "calibration" in report:
        found["reliability.svg"] = _drawn(_reliability, report["calibration"])
    return found


def _drawn(draw: Any, what: Mapping[str, Any]) -> str:
    """The picture's text, which is the same for the same numbers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "svg.hashsalt": "bertfast"}):
        figure = Figure(layout="constrained")
        draw(figure, what)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _confusion(figure: Any, what: Mapping[str, Any]) -> None:
    counts, labels = np.array(what["counts"]), [mathtext(label)[:40] for label in what["labels"]]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(12.0, 2.5 + 0.35 * len(labels))
    figure.set_size_inches(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=90)
    axes.set_yticks(places, labels)
    axes.set_xlabel("given label")
    axes.set_ylabel("label")
    figure.colorbar(image, label="share of the label's rows", shrink=0.8)
    if len(labels) <= WRITTEN:
        for row, column in np.ndindex(counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=colour)


def _reliability(figure: Any, what: Mapping[str, Any]) -> None:
    bins = what["bins"]
    figure.set_size_inches(4.2, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    starts, widths = zip(*((row["from"], row["to"] - row["from"]) for row in bins), strict=True)
    shares = [row["accuracy"] for row in bins]
    above.bar(starts, shares, widths, align="edge", color="C0", alpha=0.6, label="came true")
    above.plot([row["confidence"] for row in bins], shares, "o", color="C0")
    above.plot([0, 1], [0, 1], "--", color="grey", label="as said")
    above.set_ylabel("share that came true")
    above.set_title(f"expected calibration error {what['ece']:.4f}")
    above.legend(frameon=False)
    below.bar(starts, [row["count"] for row in bins], widths, align="edge", color="C7")
    below.set_xlabel("probability")
    below.set_ylabel("rows")
    below.set_xlim(0, 1)
