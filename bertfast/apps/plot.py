"""Learning curves of pretraining runs, from their ``metrics.jsonl``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertfast.errors import BertfastError
from bertfast.escape import mathtext
from bertfast.training.metrics import FILE, read_metrics

FORMATS = (".svg", ".png", ".pdf")
KINDS = ("loss", "accuracy")
TASKS = {
    "mlm": "masked words",
    "nsp": "next sentence",
    "sop": "sentence order",
    "rtd": "replaced tokens",
    "soft": "teacher's words",
    "cosine": "teacher's states",
}
LINES = ("-", "--", ":", "-.")


def plot(runs: list[Path], out: Path) -> None:
    """Draws the losses and the accuracies of each run, a panel each, against the tokens trained on.

    Args:
        runs: folders of pretraining runs.
        out: the picture; its ending says the format.

    Raises:
        BertfastError: matplotlib is missing, a folder is no run, or the picture cannot be written.
    """
    if out.suffix not in FORMATS:
        raise BertfastError(f"{out}: must end in {', '.join(FORMATS)}")
    curves = {run: _read(run) for run in runs}
    try:
        import matplotlib
    except ImportError:
        raise BertfastError(
            "matplotlib draws the curves and is not installed; pip install 'bertfast[demo]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 10, "svg.hashsalt": "bertfast"}):
        figure, panels = pyplot.subplots(1, len(KINDS), figsize=(10, 3.6), layout="constrained")
        for axes, kind in zip(panels, KINDS, strict=True):
            for number, (run, lines) in enumerate(curves.items()):
                for colour, (task, shown) in enumerate(TASKS.items()):
                    points = [
                        (line["tokens"], line[name])
                        for line in lines
                        if (name := f"{task}_{kind}") in line
                    ]
                    if points:
                        label = f"{mathtext(run.name)}: {shown}" if len(curves) > 1 else shown
                        axes.plot(
                            *zip(*points, strict=True),
                            LINES[number % len(LINES)],
                            color=f"C{colour}",
                            label=label,
                        )
            axes.set_xlabel("tokens")
            axes.set_ylabel(kind)
            if kind == "loss":
                axes.set_yscale("log")  # a run's losses differ by orders
            else:
                axes.set_ylim(0, 1)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.3)
            if axes.lines:
                axes.legend(frameon=False, fontsize=8)
        try:
            figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
        except OSError as error:
            raise BertfastError(f"{out}: cannot be written ({error})") from error
        finally:
            pyplot.close(figure)


def _read(run: Path) -> list[dict[str, Any]]:
    try:
        lines = read_metrics(run)
        whole = all("tokens" in line and "loss" in line for line in lines)
    except (OSError, ValueError, TypeError) as error:
        raise BertfastError(
            f"{run}: is no pretraining run: its {FILE} cannot be read ({error})"
        ) from error
    if not lines or not whole:
        raise BertfastError(f"{run}: its {FILE} holds no logged step yet")
    return lines
