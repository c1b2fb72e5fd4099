"""The figures of docs/performance.md: each from a machine's record alone, as an SVG beside its
JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Side = tuple[str, dict[str, Any]]

# Okabe and Ito, "Color Universal Design": told apart by the colour-blind too; markers differ
# besides.
INK, STRONG, QUIET = "#1f2933", "#0072b2", "#9fb3c8"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX*<>h"
WIDTH = 9.0  # inches, the width of a page
MOST_PEERS = 5  # lines beside ours that a plot can show


@dataclass(frozen=True)
class Figure:
    """A plot of a record.

    Attributes:
        suffix: of the file's name, after the machine's.
        caption: what it shows, in words.
        only: the expression of `python -m benchmarks ... --only` that measures it again.
        draw: the record onto matplotlib's figure.
        cases: those that it is drawn from; without any there is no such figure.
    """

    suffix: str
    caption: str
    only: str
    draw: Callable[[list[Record], Record, Any], None]
    cases: Callable[[Record], list[Record]]

    def path(self, record: Record, folder: Path) -> Path:
        return folder / f"{record['machine']['slug']}{self.suffix}.svg"


def draw_all(record: Record, folder: Path) -> list[Path]:
    """Writes every figure that the record has cases for; their files."""
    written = []
    for figure in FIGURES:
        cases = figure.cases(record)
        if not cases:
            continue
        path = figure.path(record, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _canvas(path) as canvas:
            figure.draw(cases, record, canvas)
        written.append(path)
    return written


@contextmanager
def _canvas(path: Path) -> Iterator[Any]:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    style = {
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e7eb",
        "legend.frameon": False,
        "svg.hashsalt": "bertfast",
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(layout="constrained", facecolor="white")
        yield canvas
        canvas.savefig(path, metadata={"Date": None})


def ours(case: Record) -> Side:
    """The side that a user gets, and its name."""
    return next((name, side) for name, side in case["sides"].items() if side["kind"] == "ours")


def others(case: Record, *kinds: str) -> list[Side]:
    """The sides of these kinds, fastest first."""
    found = [(name, side) for name, side in case["sides"].items() if side["kind"] in kinds]
    return sorted(found, key=lambda item: item[1]["ratio"]["median"])


def ratio(side: dict[str, Any]) -> str:
    """ "1.23x": its time over ours."""
    value = side["ratio"]["median"]
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


# --- Ratio bars ---


def _with_peers(*, products: bool) -> Callable[[Record], list[Record]]:
    def cases(record: Record) -> list[Record]:
        return [
            case
            for case in record["cases"]
            if "sweep" not in case and bool(case["flops"]) == products and others(case, "peer")
        ]

    return cases


def _draw_ratios(cases: list[Record], record: Record, canvas: Any) -> None:
    """A bar for the fastest peer of each case."""
    canvas.set_size_inches(WIDTH, 0.8 + 0.3 * len(cases))
    axes = canvas.subplots()
    fastest = [others(case, "peer")[0] for case in cases]
    names = [f"{case['op']}: {case['shape']}, {case['dtype']}" for case in cases]
    values = [side["ratio"]["median"] for _, side in fastest]
    widest = max(values)
    errors = [
        [value - side["ratio"]["low"] for value, (_, side) in zip(values, fastest, strict=True)],
        [side["ratio"]["high"] - value for value, (_, side) in zip(values, fastest, strict=True)],
    ]
    colours = [STRONG if case["op"] == "step" else QUIET for case in cases]
    places = range(len(cases))
    axes.barh(places, values, color=colours, xerr=errors, error_kw={"ecolor": INK, "elinewidth": 1})
    axes.set_yticks(places, names)
    for place, (name, side) in zip(places, fastest, strict=True):
        label = f"{ratio(side)} against {name}"
        axes.text(side["ratio"]["high"] + 0.02 * widest, place, label, va="center", fontsize=8)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.grid(False, axis="y")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 2.25 * widest)  # room for the labels
    axes.set_xlabel("fastest peer's time over ours (median, quartiles); above 1 ours is faster")


# --- The first screen ---


def front_cases(record: Record) -> list[Record]:
    """What users do all day: the training step in each dtype, and sentence embeddings."""
    found = [
        case
        for case in record["cases"]
        if "sweep" not in case
        and others(case, "peer")
        and (
            (case["op"] == "step" and case["shape"].startswith(("reference point", "wikitext")))
            or (case["op"] == "sentence_embedding" and case["shape"].endswith("from text"))
        )
    ]
    return sorted(found, key=lambda case: case["op"] != "step")


def _draw_front(cases: list[Record], record: Record, canvas: Any) -> None:
    """Tokens in a second, ours beside the fastest peer's, each pair scaled to ours."""
    canvas.set_size_inches(WIDTH, 0.7 + 0.55 * len(cases))
    axes = canvas.subplots()
    for place, case in enumerate(cases):
        name, side = others(case, "peer")[0]
        share = 1 / side["ratio"]["median"]
        axes.barh(place - 0.2, 1, 0.36, color=STRONG)
        axes.barh(place + 0.2, share, 0.36, color=QUIET)
        rate = case["tokens"] / ours(case)[1]["median"]
        axes.text(1.01, place - 0.2, f"bertfast, {rate:,.0f} tokens/s", va="center", fontsize=8)
        label = f"{name}, {rate * share:,.0f} tokens/s"
        axes.text(share + 0.01, place + 0.2, label, va="center", fontsize=8)
    titles = {"step": "training step", "sentence_embedding": "sentence embeddings"}
    names = [
        f"{titles[case['op']]}, {case['dtype']}:\n{case['shape'].removesuffix(', from text')}"
        for case in cases
    ]
    axes.set_yticks(range(len(cases)), names, fontsize=8)
    axes.set_xlim(0, 1.35)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)
    axes.invert_yaxis()


# --- Roofline ---


def _placed(record: Record) -> list[Record]:
    """Cases whose FLOPs and bytes are both known."""
    return [
        case
        for case in record["cases"]
        if not {"sweep", "tuned"} & case.keys()
        and case.get("floor", {}).get("flops")
        and case["floor"]["bytes"]
    ]


def _draw_roofline(cases: list[Record], record: Record, canvas: Any) -> None:
    """Each case by its FLOP per byte and the rate it reaches; hollow: the fastest peer."""
    canvas.set_size_inches(WIDTH, 5)
    axes = canvas.subplots()
    rates = record["rates"]
    dtypes = sorted({case["dtype"] for case in cases}, reverse=True)
    colours = dict(zip(dtypes, COLOURS, strict=False))
    ops = list(dict.fromkeys(case["op"] for case in cases))
    markers = {op: MARKERS[place % len(MARKERS)] for place, op in enumerate(ops)}
    intensities = [case["floor"]["flops"] / case["floor"]["bytes"] for case in cases]
    left, right = min(intensities) / 3, max(intensities) * 3
    for dtype in dtypes:
        roof = rates[f"matrix {dtype}"]
        ridge = min(max(roof / rates["copy"], left), right)
        axes.plot(
            [left, ridge, right],
            [min(roof, rates["copy"] * left), roof, roof],
            color=colours[dtype],
            linewidth=1.2,
        )
        axes.text(
            right,
            roof,
            f"{dtype} products",
            va="bottom",
            ha="right",
            fontsize=8,
            color=colours[dtype],
        )
    axes.text(
        left * 1.2, rates["copy"] * left * 2, f"copy, {rates['copy'] / 1e9:,.0f} GB/s", fontsize=8
    )
    for case, intensity in zip(cases, intensities, strict=True):
        colour, marker = colours[case["dtype"]], markers[case["op"]]
        reached = case["floor"]["flops"] / ours(case)[1]["median"]
        peers = others(case, "peer")
        if peers:
            theirs = case["floor"]["flops"] / peers[0][1]["median"]
            axes.plot([intensity] * 2, [theirs, reached], color=colour, linewidth=0.6)
            axes.plot(
                intensity, theirs, marker, color=colour, markerfacecolor="white", markersize=5
            )
        axes.plot(intensity, reached, marker, color=colour, markersize=6)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte that must be moved",
        ylabel="useful FLOP/s",
    )
    for op in ops:
        axes.plot([], [], markers[op], color=INK, label=op)
    axes.legend(loc="lower right", fontsize=8, title="filled: ours; hollow: fastest peer")


# --- Sweeps ---


def _swept(name: str) -> Callable[[Record], list[Record]]:
    def cases(record: Record) -> list[Record]:
        found = [case for case in record["cases"] if case.get("sweep") == name]
        return sorted(found, key=lambda case: case["x"])

    return cases


def _draw_sweep(xlabel: str, log: bool = True) -> Callable[[list[Record], Record, Any], None]:
    def draw(cases: list[Record], record: Record, canvas: Any) -> None:
        """Time at the left, peak memory at the right: ours, and the peers that are fastest at the
        last point.
        """
        canvas.set_size_inches(WIDTH, 3.6)
        panels = canvas.subplots(1, 2)
        chosen = [ours(cases[-1])[0], *(name for name, _ in others(cases[-1], "peer")[:MOST_PEERS])]
        for place, name in enumerate(chosen):
            points = [(case["x"], case["sides"][name]) for case in cases if name in case["sides"]]
            look = {
                "marker": MARKERS[place],
                "color": COLOURS[place % len(COLOURS)],
                "label": name,
                "markersize": 4,
            }
            look["linewidth"] = 1.2 if place else 2.2
            x = [x for x, _ in points]
            times = [side["median"] * 1e3 for _, side in points]
            panels[0].plot(x, times, **look)
            panels[0].fill_between(
                x,
                [side["low"] * 1e3 for _, side in points],
                [side["high"] * 1e3 for _, side in points],
                color=look["color"],
                alpha=0.15,
                linewidth=0,
            )
            known = [(x, side["peak_bytes"] / 2**20) for x, side in points if side["peak_bytes"]]
            panels[1].plot([x for x, _ in known], [peak for _, peak in known], **look)
        for axes, label in zip(
            panels, ("ms (median, quartiles)", "peak extra memory, MiB"), strict=True
        ):
            axes.set(xlabel=xlabel, ylabel=label)
            ticks = [case["x"] for case in cases]
            if log:
                axes.set(xscale="log", yscale="log")
                axes.minorticks_off()
                axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            else:
                axes.set_ylim(bottom=0)
                axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
        handles, labels = panels[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)

    return draw


FRONT = Figure(
    "-front",
    "Tokens a second: bertfast and its fastest peer, in training steps and sentence embeddings",
    "step and not over or sentence_embedding",
    _draw_front,
    front_cases,
)
FIGURES = (
    FRONT,
    Figure(
        "",
        "The fastest peer's time over ours: the training step, and the ops that multiply matrices",
        "step or attention or linear_cross_entropy",
        _draw_ratios,
        _with_peers(products=True),
    ),
    Figure(
        "-memory-bound",
        "The fastest peer's time over ours: the ops that move memory",
        "not (step or attention or linear_cross_entropy)",
        _draw_ratios,
        _with_peers(products=False),
    ),
    Figure(
        "-roofline",
        "Roofline: the useful FLOP/s of each case beneath this machine's measured copy bandwidth "
        "and matrix rates",
        "not over",
        _draw_roofline,
        _placed,
    ),
    Figure(
        "-attention-tokens",
        "Attention on WikiText's paragraph lengths: time and peak memory against tokens",
        "attention_over_tokens",
        _draw_sweep("tokens"),
        _swept("attention-tokens"),
    ),
    Figure(
        "-attention-length",
        "Attention at a constant number of tokens: time and peak memory against sequence length",
        "attention_over_sequence_length",
        _draw_sweep("tokens of a sequence"),
        _swept("attention-length"),
    ),
    Figure(
        "-linear_cross_entropy-tokens",
        "linear_cross_entropy: time and peak memory against predicted tokens",
        "linear_cross_entropy_over_tokens",
        _draw_sweep("predicted tokens"),
        _swept("linear_cross_entropy-tokens"),
    ),
    Figure(
        "-step-fill",
        "The training step: time and peak memory against the share of non-padding in the padded "
        "batch",
        "step_over_fill",
        _draw_sweep("share of non-padding", log=False),
        _swept("step-fill"),
    ),
)
