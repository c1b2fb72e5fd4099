"""The tables and plots of docs/performance.md, made from the JSON files under results/ and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .importable import REPOSITORY
from .settings import RESULTS

PAGE = REPOSITORY / "docs" / "performance.md"
STRONG, QUIET, INK = "#2463a6", "#9fb3c8", "#1f2933"
OPS = {
    "step": "The training step",
    "attention": "attention",
    "linear_cross_entropy": "linear_cross_entropy",
    "gather_rows": "gather_rows",
    "dropout": "dropout",
}
INTRODUCTION = """# Performance

This page is written by `python -m benchmarks page` from the JSON files under `benchmarks/results/`; no number on it was typed.

A ratio is the other side's time over ours, **above 1 where bertfast is faster**: the median over rounds in which all sides run in turn in
one process, after a check that they compute the same thing. `~` marks a case in which a side's quartiles lie more than 15 % of its median
apart: do not conclude from it. Times are forward and backward together; a step adds the optimizer.

The *share* column says how near the case is to what cannot be avoided. For products it is the useful FLOPs (real tokens, pairs of tokens in one
sequence, masked positions; a recomputation counts for nothing) over time and the measured rate of this machine's matrix products in the
same dtype; for memory-bound ops it is the time of the copies that any implementation must make over ours. The matrix rate is the best that PyTorch's own
products reached here, not the chip's peak, so a small product that stays in the caches can exceed it.
"""


def load_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every machine's record, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def rows(record: dict[str, Any], op: str) -> Iterator[list[str]]:
    """The lines of an op's table: shape, dtype, milliseconds, ratios, share."""
    for case in record["cases"]:
        if case["op"] != op:
            continue
        sides = case["sides"]
        ours = next(side for side in sides.values() if side["kind"] == "ours")
        name = next(name for name, side in sides.items() if side is ours)
        noisy = " ~" if any(side["noisy"] for side in sides.values()) else ""
        yield [
            case["shape"],
            case["dtype"],
            f"{_milliseconds(ours['median'])}{noisy}",
            "; ".join(f"{other} {_ratio(side)}" for other, side in _peers(sides)) or "none could run",
            _share(record, case, ours),
            name,
        ]


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(side: dict[str, Any]) -> str:
    ratio = side["ratio"]["median"]
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def _peers(sides: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The sides that are somebody else's, and our other backends, fastest first."""
    others = [(name, side) for name, side in sides.items() if side["kind"] in ("peer", "backend")]
    return sorted(others, key=lambda item: item[1]["ratio"]["median"])


def _share(record: dict[str, Any], case: dict[str, Any], ours: dict[str, Any]) -> str:
    if case["flops"]:
        rate = record["rates"][f"matrix {case['dtype']}"]
        return f"{case['flops'] / ours['median'] / rate:.0%} of the matrix rate"
    floors = [side for side in case["sides"].values() if side["kind"] == "floor"]
    return f"{floors[0]['ratio']['median']:.0%} of the floor" if floors else ""


def step_parts(record: dict[str, Any]) -> Iterator[list[str]]:
    """The steps again without the optimizer."""
    for case in record["cases"]:
        if case["op"] != "step":
            continue
        ours = next(side for side in case["sides"].values() if side["kind"] == "ours")
        parts = sorted(
            ((name, side["part"]["ratio"]["median"]) for name, side in case["sides"].items() if side["kind"] == "peer"),
            key=lambda item: item[1],
        )
        rate = record["rates"][f"matrix {case['dtype']}"]
        yield [
            case["shape"],
            case["dtype"],
            _milliseconds(ours["part"]["median"]),
            "; ".join(f"{name} {ratio:.2f}x" for name, ratio in parts) or "none could run",
            f"{case['flops'] / ours['part']['median'] / rate:.0%} of the matrix rate",
        ]


def floors(record: dict[str, Any]) -> Iterator[list[str]]:
    """Ours beside the matrix products alone, where a case measures them."""
    for case in record["cases"]:
        for name, side in case["sides"].items():
            if side["kind"] == "floor" and case["flops"]:
                yield [
                    case["op"],
                    case["shape"],
                    case["dtype"],
                    f"{1 / side['ratio']['median']:.2f}x {name.removeprefix('floor: ')}",
                ]


HEADINGS = ["shape", "dtype", "ms", "ratios to ours", "share", "backend"]


def print_tables(folder: Path) -> None:
    """The newest figures on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=150)
    for record in load_results(folder):
        rates = ", ".join(_rate(name, value) for name, value in record["rates"].items())
        console.rule(f"{record['machine']['name']}: {rates}")
        for op, title in OPS.items():
            lines = list(rows(record, op))
            if not lines:
                continue
            table = Table(*HEADINGS, title=title, title_justify="left")
            for line in lines:
                table.add_row(*map(escape, line))
            console.print(table)
        for name, why in record["skipped"].items():
            console.print(f"not measured: {name}: {why}", markup=False)


def _rate(name: str, value: float) -> str:
    if name == "copy":
        return f"copy {value / 1e9:,.1f} GB/s"
    return f"{name.removeprefix('matrix ')} products {value / 1e9:,.0f} GFLOP/s"


def write_page() -> None:
    """docs/performance.md, and a plot of ratios for each machine."""
    records = load_results()
    for record in records:
        draw_ratios(record, _plot(record))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page_text(records), encoding="utf-8")


def page_text(records: list[dict[str, Any]]) -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION, *(_section(record) for record in records)]
    if not any(record["machine"]["device"] == "cuda" for record in records):
        parts.append(
            "\n## GPUs\n\nNothing was measured on a GPU yet. `make gpu` on a machine with one writes its section here.\n"
        )
    return "".join(parts)


def _plot(record: dict[str, Any]) -> Path:
    return RESULTS / f"{record['machine']['slug']}.svg"


def _section(record: dict[str, Any]) -> str:
    """A machine's heading, plot and tables."""
    machine = record["machine"]
    command = "make gpu" if machine["device"] == "cuda" else "make bench"
    parts = [
        f"\n## {machine['name']}\n\n`{command}` at commit `{record['commit']}`, {record['date']}; ",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        f"; {machine['threads']} threads",
        f", with {', '.join(machine['instructions'])}" if machine["instructions"] else "",
        f". Measured rates: {', '.join(_rate(name, value) for name, value in record['rates'].items())}.\n\n",
        f"![Ratios of the peers' times to ours](../{_plot(record).relative_to(REPOSITORY)})\n",
    ]
    for op, title in OPS.items():
        lines = list(rows(record, op))
        if not lines:
            continue
        model = next(case.get("model", "") for case in record["cases"] if case["op"] == op)
        parts.append(f"\n### {title}\n\n" + (f"{model}; forward, backward and AdamW.\n\n" if model else ""))
        parts.append(_markdown(HEADINGS, lines))
        if op == "step":
            parts.append("\nWithout the optimizer:\n\n" + _markdown(HEADINGS[:-1], list(step_parts(record))))
        extra = [line[1:] for line in floors(record) if line[0] == op]
        if extra:
            parts.append("\nBeside the products alone:\n\n" + _markdown(["shape", "dtype", "our time"], extra))
    gaps = [f"- {name}: {why}\n" for name, why in record["skipped"].items()] + [
        f"- {case['op']}, {case['shape']}, {case['dtype']}: {name}: {why}\n"
        for case in record["cases"]
        for name, why in case["missing"].items()
    ]
    if gaps:
        parts.append("\n### Not measured\n\n" + "".join(gaps))
    return "".join(parts)


def _markdown(headings: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, ["---"] * len(headings), *lines))


def draw_ratios(record: dict[str, Any], path: Path) -> None:
    """A bar for the fastest peer of every case of the step and of attention, in float32 and bfloat16."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = []
    for case in record["cases"]:
        peers = [(name, side) for name, side in _peers(case["sides"]) if side["kind"] == "peer"]
        if peers:
            chosen.append((case, *peers[0]))
    with pyplot.rc_context(
        {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": "bertfast", "svg.fonttype": "none"}
    ):
        figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.3 * len(chosen)), layout="constrained")
        names = [f"{case['op']}: {case['shape']}, {case['dtype']}" for case, _, _ in chosen]
        values = [side["ratio"]["median"] for _, _, side in chosen]
        widest = max(values, default=1.0)
        errors = [
            [value - side["ratio"]["low"] for value, (_, _, side) in zip(values, chosen, strict=True)],
            [side["ratio"]["high"] - value for value, (_, _, side) in zip(values, chosen, strict=True)],
        ]
        colours = [STRONG if case["op"] == "step" else QUIET for case, _, _ in chosen]
        axes.barh(names, values, color=colours, xerr=errors, error_kw={"ecolor": INK, "elinewidth": 1})
        for place, (_, name, side) in enumerate(chosen):
            label = f"{_ratio(side)} against {name}"
            axes.text(side["ratio"]["high"] + 0.02 * widest, place, label, va="center", fontsize=8)
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlim(0, 2 * widest)  # room for the labels
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("fastest peer's time over ours (median, quartiles)")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
