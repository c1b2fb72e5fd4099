"""``docs/note.md`` and its plots, from the results of the parts alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bertfast.apps.html import COLOURS, GRID, svg
from bertfast.escape import mathtext

from .parts import SIDES

PLOTS = "results"  # beside the page
HEAD = """# What pretraining changes

Small encoders, our own measurements alone. Each part names the command that made it. Intervals are
95 %, of draws of the examples, and of the seeds where there are several.

```sh
make note
```

That measures all parts in hours of two cores, and writes this page from their results. It goes on
where it was stopped. `make note DATA=FOLDER` names the folder of the files: text of books, SST-2,
WNUT 2017 and the STS benchmark. `python -m benchmarks.note --help` lists each file and its option.
Parts of speech need a tagged file of yours, as of a treebank: `--tags` and `--tags-test`. With
`--quick` everything runs at a tiny size, to see that it does; its figures mean nothing and stay in
`build`.
"""
TEXTS = {
    "tokens": (
        "Tokens of pretraining",
        "One run, scored at several of its updates: each model is fine-tuned whole on the same "
        "labels. Nothing read is the same encoder from random weights.",
    ),
    "labels": (
        "Pretrained or not, frozen or whole",
        "The last model of that run against the number of labels: fine-tuned whole, frozen under a "
        "new head, from random weights; and TF-IDF with logistic regression.",
    ),
    "context": (
        "What the left and the right are worth",
        "How often one hidden word of held-out text is guessed first: with both sides, with the "
        "words on its left alone, with those on its right alone. The other side is left out, which "
        "no training has shown the model, so a side's worth is a lower bound.",
    ),
    "variants": (
        "Masks and objectives",
        "Runs that differ from the first of their member in one thing, on the same little text and "
        "for the same updates, each fine-tuned whole on the same labels. Sentence order is "
        "ALBERT's objective, so it stands beside an ALBERT of the same size.",
    ),
    "probes": (
        "What each layer knows",
        "Of tags what a logistic regression reads off a layer's vectors; of similarity the rank "
        "correlation of cosines of mean vectors with people's judgement. Layer 0 is the "
        "embeddings.",
    ),
}


def write_note(page: Path, results: dict[str, dict[str, Any]]) -> None:
    """Writes the page, and a plot for each part beside it.

    Args:
        page: of Markdown.
        results: what each part that was measured has in its file.
    """
    plots = page.parent / PLOTS
    plots.mkdir(parents=True, exist_ok=True)
    lines = [HEAD]
    for name, (title, text) in TEXTS.items():
        lines += [f"## {title}\n"]
        if name not in results:
            lines += [f"Not measured yet: `python -m benchmarks.note --only {name}`.\n"]
            continue
        result = results[name]
        table, draw = SHOWN[name](result["points"])
        picture = plots / f"note-{name}.svg"
        picture.write_text(svg(draw, 3.4, inline=False), encoding="utf-8")
        said = (
            f"`{result['command']}`: {result['machine']}, commit {result['commit']}, "
            f"{result['seconds']:,.0f} s."
        )
        lines += [_wrapped(text)]
        lines += [f"![{title}]({PLOTS}/{picture.name})\n", *table, "", _wrapped(said)]
    page.write_text("\n".join(lines), encoding="utf-8")


def _wrapped(text: str) -> str:
    """At 100 columns, with an empty line behind."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > 99:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _value(point: dict[str, Any]) -> str:
    if not point.get("interval"):
        return f"{point['mean']:.4f}"
    low, high = point["interval"]
    return f"{point['mean']:.4f} [{low:.4f}, {high:.4f}]"


def _lines(curves: dict[str, list[tuple[float, dict[str, Any]]]], label: str, axes: Any) -> None:
    """A line with its band for each name."""
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        x, values = [place for place, _ in points], [point for _, point in points]
        axes.plot(x, [point["mean"] for point in values], "o-", c=colour, label=mathtext(name))
        if all(point.get("interval") for point in values):
            lows, highs = zip(*(point["interval"] for point in values), strict=True)
            axes.fill_between(x, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(label)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=9)


def _bars(points: dict[str, dict[str, Any]], axes: Any) -> None:
    """A point with its interval for each name."""
    for number, point in enumerate(reversed(points.values())):
        if point.get("interval"):
            axes.plot(point["interval"], [number, number], c=COLOURS[0])
        axes.plot([point["mean"]], [number], "o", c=COLOURS[0])
    axes.set_yticks(range(len(points)), [mathtext(name) for name in reversed(points)])
    axes.grid(axis="x", color=GRID)


Shown = tuple[list[str], Callable[[Any], None]]


def _tokens(points: list[dict[str, Any]]) -> Shown:
    points = sorted(points, key=lambda point: point["tokens"])
    words = points[0]["words"]
    table = [_row("tokens read", words), _row("---", "---")]
    table += [_row(f"{point['tokens']:,}", _value(point)) for point in points]
    curve = {words: [(point["tokens"], point) for point in points]}
    return table, partial(_lines, curve, "tokens of pretraining")


def _labels(points: list[dict[str, Any]]) -> Shown:
    rows = list(dict.fromkeys(point["row"] for point in points))
    numbers = sorted({point["labels"] for point in points})
    by_place = {(point["row"], point["labels"]): point for point in points}
    table = [_row("labels", *rows), _row(*["---"] * (len(rows) + 1))]
    for number in numbers:
        cells = [_value(by_place[row, number]) for row in rows]
        table.append(_row(f"{number:,}", *cells))

    def draw(axes: Any) -> None:
        curves = {row: [(n, by_place[row, n]) for n in numbers] for row in rows}
        axes.set_xscale("log")
        _lines(curves, "labelled examples", axes)
        axes.set_ylabel(points[0]["words"])

    return table, draw


def _context(points: list[dict[str, Any]]) -> Shown:
    table = [_row("class", "words", *SIDES), _row(*["---"] * (2 + len(SIDES)))]
    for point in points:
        cells = [_value(point[side]) for side in SIDES]
        table.append(_row(point["class"], f"{point['words']:,}", *cells))

    def draw(axes: Any) -> None:
        for number, (side, colour) in enumerate(zip(SIDES, COLOURS, strict=False)):
            places = [place + 0.25 * number for place in range(len(points))]
            axes.bar(places, [p[side]["mean"] for p in points], 0.25, color=colour, label=side)
            for place, point in zip(places, points, strict=True):
                axes.plot([place, place], point[side]["interval"], c="#7b8fa3", lw=1)
        axes.set_xticks([place + 0.25 for place in range(len(points))])
        axes.set_xticklabels([p["class"] for p in points], rotation=20, ha="right", fontsize=8)
        axes.set_ylabel("guessed first")
        axes.legend(frameon=False)

    return table, draw


def _variants(points: list[dict[str, Any]]) -> Shown:
    table = [_row("run", points[0]["words"]), _row("---", "---")]
    table += [_row(point["row"], _value(point)) for point in points]
    return table, partial(_bars, {point["row"]: point for point in points})


def _probes(points: dict[str, list[dict[str, Any]]]) -> Shown:
    names = [f"{name} ({layers[0]['words']})" for name, layers in points.items()]
    table = [_row("layer", *names), _row(*["---"] * (len(names) + 1))]
    for layer in range(len(next(iter(points.values())))):
        table.append(_row(layer, *(_value(layers[layer]) for layers in points.values())))
    curves = {
        name: list(enumerate(layers)) for name, layers in zip(names, points.values(), strict=True)
    }
    return table, partial(_lines, curves, "layer")


SHOWN: dict[str, Callable[[Any], Shown]] = {
    "tokens": _tokens,
    "labels": _labels,
    "context": _context,
    "variants": _variants,
    "probes": _probes,
}
