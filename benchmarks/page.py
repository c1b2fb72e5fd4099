"""The tables and plots of docs/performance.md, made from the JSON files under results/ and from
nothing else.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertfast.bench.ops import OPS
from bertfast.bench.timing import LAUNCHES, NOISE_BOUND

from .front import write_front
from .importable import REPOSITORY, is_missing
from .plots import FIGURES, draw_all, others, ours, ratio
from .results import identity
from .settings import RESULTS

PAGE = REPOSITORY / "docs" / "performance.md"
TITLES = {"sentence_embedding": "Sentence embeddings", "step": "The training step"} | {
    op: op for op in OPS
}
WHAT = {
    "sentence_embedding": "sentence-transformers sorts by characters and pads",
    "step": "forward, backward and AdamW",
}
INTRODUCTION = f"""# Performance

`python -m benchmarks page` writes this page from the JSON files under `benchmarks/results/`. No
number on it was typed.

A ratio is the other side's time over ours, **above 1 where bertfast is faster**. It is the median
over rounds in which all sides run in turn in one process. A check before it shows that they compute
the same thing. `~` marks a case in which a side's quartiles lie more than {NOISE_BOUND:.0%} of its
median apart: do not conclude from it.

All sides have the good of a C library that keeps freed memory (`bertfast/training/memory.py`), as
`bertfast pretrain` sets it. Times are forward and backward together; a step adds the optimizer.
Dropout's bits are each side's own, so sides are compared without dropout and timed with it.

On a GPU each side, ours and the peers, is a CUDA graph that is replayed, and the GPU's clock times
it. `(launched)` marks a side that cannot be recorded: its time is then partly the host's. The sides
of a step run one after another there, each with the GPU's memory to itself. The matrix rate is what
a GPU sustains for seconds.

The *share* column says how near the case is to what cannot be avoided. For products it is a rate:
the useful FLOPs over the time, beside the measured rate of this machine's matrix products. Useful
are real tokens, pairs of tokens in one sequence and masked positions; a recomputation counts for
nothing. For memory-bound ops it is the time of a copy of the bytes that must be read and written
(`bertfast/bench/floors.py`) over ours. The matrix rate is the best that PyTorch's own products
reached here in the same dtype, not the chip's peak. A small product that stays in the caches can
exceed it.

*Peak* is the memory that a call holds at most beyond what was held before it, ours and then the
fastest peer's. PyTorch's allocator measures it on a GPU. On a CPU the process's resident pages do,
which are exact to about a MiB.

## To reproduce

`make bench` measures everything on a CPU in about half an hour, checks its results, and writes this
page, its plots and their JSON. `make gpu RESULTS=FOLDER` takes as long on a GPU, with PyTorch,
Triton and NumPy alone, and `python -m benchmarks import FOLDER` takes its results in. Below each
table and plot stands the command that measures it alone. On a CPU that one writes under
`build/benchmarks/`. `bertfast bench --lengths FILE` measures an op or the step on your own lengths.
`bertfast profile` shows where a step's time goes. Run nothing else meanwhile: noise is marked, not
removed.
"""
COLUMNS = 100
PROFILE_ROWS = 20  # of the kernels of a step


def load_results(folder: Path = RESULTS, since: float = 0.0) -> list[dict[str, Any]]:
    """Every machine's record, by name; those alone that were written after ``since``, in seconds of
    the epoch.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if path.stat().st_mtime >= since]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def rows(record: dict[str, Any], op: str) -> Iterator[list[str]]:
    """The lines of an op's table, under `HEADINGS`."""
    for case in record["cases"]:
        if case["op"] != op or "sweep" in case or "tuned" in case:
            continue
        sides = case["sides"]
        name, own = ours(case)
        noisy = " ~" if any(side["noisy"] for side in sides.values()) else ""
        yield [
            case["shape"],
            case["dtype"],
            f"{_milliseconds(own['median'])}{noisy}",
            "; ".join(
                f"{other}{_launched(side)} {ratio(side)}"
                for other, side in others(case, "peer", "backend")
            )
            or "none could run",
            _share(record, case, own) + _speed(record, case, own),
            _peaks(case),
            f"{name}{_launched(own)}",
        ]


def _launched(side: dict[str, Any]) -> str:
    return " (launched)" if side.get("timed", "").startswith(LAUNCHES) else ""


def _speed(record: dict[str, Any], case: dict[str, Any], own: dict[str, Any]) -> str:
    """A step's tokens a second on a GPU, by which models are compared there."""
    if case["op"] != "step" or record["machine"]["device"] != "cuda":
        return ""
    return f"; {case['tokens'] / own['median']:,.0f} tokens/s"


def passes(record: dict[str, Any], op: str) -> Iterator[list[str]]:
    """Forward and backward alone, where they were timed: ours, and the peers' time over it."""
    for case in record["cases"]:
        own = ours(case)[1]
        if case["op"] != op or "sweep" in case or "forward" not in own:
            continue
        for name in ("forward", "backward"):
            found = [
                (side[name]["median"] / own[name]["median"], f"{other}{_launched(side[name])}")
                for other, side in others(case, "peer")
                if name in side
            ]
            if name == "forward":
                found += [
                    (side["ratio"]["median"], f"{other}{_launched(side)}")
                    for other, side in others(case, "forward")
                ]
            ratios = [f"{other} {value:.2f}x" for value, other in sorted(found)]
            yield [
                case["shape"],
                case["dtype"],
                name,
                _milliseconds(own[name]["median"]) + _launched(own[name]),
                "; ".join(ratios) or "none could run",
            ]


PASS_HEADINGS = ["shape", "dtype", "pass", "ms", "ratios to ours"]


def tuned(record: dict[str, Any]) -> Iterator[list[str]]:
    """The step with tuned options beside the same one with the shipped ones."""
    shipped = {identity(case): case for case in record["cases"] if "tuned" not in case}
    for case in record["cases"]:
        before = shipped.get(identity(case))
        if "tuned" in case and before is not None:
            own, usual = (ours(one)[1]["median"] for one in (case, before))
            speed = f"{case['tokens'] / own:,.0f}"
            yield [case["shape"], _milliseconds(usual), _milliseconds(own), speed]


def checked(record: dict[str, Any]) -> Iterator[str]:
    """What the self-check of a GPU's run found, line by line; nothing where there was none."""
    if "checks" not in record:
        return
    failed = record["checks"]["failed"]
    yield f"{record['checks']['passed']} checks passed, {len(failed)} failed."
    yield from (f"- {name}: {why}" for name, why in failed.items())
    for part, ended in record["parts"].items():
        if ended != "done":
            yield f"- part {part} was cut short: {ended}"


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _peaks(case: dict[str, Any]) -> str:
    """Ours and the fastest peer's, in MiB; nothing in records of before peaks were measured."""
    sides = [ours(case)[1], *(side for _, side in others(case, "peer")[:1])]
    if "peak_bytes" not in sides[0]:
        return ""
    return " / ".join(
        "?" if side["peak_bytes"] is None else f"{side['peak_bytes'] / 2**20:,.1f}"
        for side in sides
    )


def _share(record: dict[str, Any], case: dict[str, Any], own: dict[str, Any]) -> str:
    if case["flops"]:
        rate = case.get("rates", record["rates"]).get(f"matrix {case['dtype']}")
        if rate is None:  # the run was stopped before it was measured
            return ""
        return f"{case['flops'] / own['median'] / rate:.0%} of the matrix rate"
    floors = [side for side in case["sides"].values() if side["kind"] == "floor"]
    return f"{floors[0]['ratio']['median']:.0%} of the floor" if floors else ""


def step_parts(record: dict[str, Any]) -> Iterator[list[str]]:
    """The steps again without the optimizer."""
    for case in record["cases"]:
        if case["op"] != "step" or "sweep" in case or "part" not in ours(case)[1]:
            continue
        part = ours(case)[1]["part"]["median"]
        parts = [(side["part"]["ratio"]["median"], name) for name, side in others(case, "peer")]
        rate = case.get("rates", record["rates"])[f"matrix {case['dtype']}"]
        yield [
            case["shape"],
            case["dtype"],
            _milliseconds(part),
            "; ".join(f"{name} {value:.2f}x" for value, name in sorted(parts)) or "none could run",
            f"{case['flops'] / part / rate:.0%} of the matrix rate",
        ]


def floors(record: dict[str, Any]) -> Iterator[list[str]]:
    """Ours beside the matrix products alone, where a case measures them."""
    for case in record["cases"]:
        for name, side in case["sides"].items():
            if side["kind"] == "floor" and case["flops"] and "sweep" not in case:
                yield [
                    case["op"],
                    case["shape"],
                    case["dtype"],
                    f"{1 / side['ratio']['median']:.2f}x {name.removeprefix('floor: ')}",
                ]


FILES = {"pack": "padding", "unpack": "padding"}  # of cases, where the name is not the op's
HEADINGS = ["shape", "dtype", "ms", "ratios to ours", "share", "peak, MiB", "backend"]


def print_tables(records: list[dict[str, Any]]) -> None:
    """A run's figures on the terminal; without rich, as plain lines."""
    if not records:
        print("benchmarks: this run has no figures")
    if is_missing("rich"):
        _print_lines(records)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=150)
    for record in records:
        console.rule(_heading(record))
        for op, title in TITLES.items():
            lines = list(rows(record, op))
            if not lines:
                continue
            table = Table(*HEADINGS, title=title, title_justify="left")
            for line in lines:
                table.add_row(*map(escape, line))
            console.print(table)
        for line in checked(record):
            console.print(line, markup=False)
        for name, why in record["skipped"].items():
            console.print(f"not measured: {name}: {why}", markup=False)


def _print_lines(records: list[dict[str, Any]]) -> None:
    for record in records:
        print(_heading(record))
        for op, title in TITLES.items():
            lines = list(rows(record, op))
            if lines:
                print(f"\n{title}: {' | '.join(HEADINGS)}")
                print("\n".join(" | ".join(line) for line in lines))
        for line in checked(record):
            print(line)
        for name, why in record["skipped"].items():
            print(f"not measured: {name}: {why}")


def _heading(record: dict[str, Any]) -> str:
    rates = ", ".join(_rate(name, value) for name, value in record["rates"].items())
    return f"{record['machine']['name']}: {rates}"


def _rate(name: str, value: float) -> str:
    if name == "copy":
        return f"copy {value / 1e9:,.1f} GB/s"
    return f"{name.removeprefix('matrix ')} products {value / 1e9:,.0f} GFLOP/s"


def write_page() -> None:
    """docs/performance.md, and each machine's plots."""
    records = load_results()
    for record in records:
        draw_all(record, RESULTS)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page_text(records), encoding="utf-8")
    write_front(records)


def page_text(records: list[dict[str, Any]]) -> str:
    """The page, in Markdown: paragraphs are wrapped, tables and pictures are not."""
    parts = [INTRODUCTION, *(_section(record) for record in records)]
    if not any(record["machine"]["device"] == "cuda" for record in records):
        parts.append(
            "\n## GPUs\n\nNothing was measured on a GPU yet. `make gpu` on a machine with one "
            "writes its section here.\n"
        )
    return "".join(map(_wrapped, "".join(parts).splitlines(keepends=True)))


def _wrapped(line: str) -> str:
    if line.startswith(("|", "#", "!")) or len(line) <= COLUMNS:
        return line
    hanging = "  " if line.startswith("- ") else ""
    filled = textwrap.fill(
        line, COLUMNS, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )
    return f"{filled}\n"


def _section(record: dict[str, Any]) -> str:
    """A machine's heading, tables, plots and gaps."""
    machine = record["machine"]
    cuda = machine["device"] == "cuda"
    command = "make gpu" if cuda else "make bench"
    again = f"python -m benchmarks {'gpu --part 3' if cuda else 'cpu'} --only"
    parts = [
        f"\n## {machine['name']}\n\n`{command}` at commit `{record['commit']}`, {record['date']}; ",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        f"; {machine['threads']} threads",
        f", with {', '.join(machine['instructions'])}" if machine["instructions"] else "",
        ". Measured rates: "
        f"{', '.join(_rate(name, value) for name, value in record['rates'].items())}.\n",
    ]
    state = record.get("state")
    if state:
        parts.append(
            f"Under that load: {state['clocks.sm']:,.0f} of {state['clocks.max.sm']:,.0f} MHz, "
            f"{state['power.draw']:,.0f} of {state['power.limit']:,.0f} W, "
            f"{state['temperature.gpu']:,.0f} degrees.\n"
        )
    found = list(checked(record))
    if found:
        parts.append("\n### Self-check\n\n" + "".join(f"{line}\n" for line in found))
    for figure in FIGURES:
        if figure.cases(record):
            path = figure.path(record, RESULTS).relative_to(REPOSITORY)
            parts.append(
                f"\n![{figure.caption}](../{path})\n\n{figure.caption}. `{again} '{figure.only}'`\n"
            )
    for op, title in TITLES.items():
        lines = list(rows(record, op))
        if not lines:
            continue
        models = list(dict.fromkeys(c.get("model", "") for c in record["cases"] if c["op"] == op))
        of = "of several models" if cuda and len(models) > 1 else models[0]
        parts.append(f"\n### {title}\n\n" + (f"{of}; {WHAT[op]}.\n\n" if models[0] else ""))
        parts.append(_markdown(HEADINGS, lines))
        lines = list(step_parts(record)) if op == "step" else []
        if lines:
            parts.append("\nWithout the optimizer:\n\n" + _markdown(HEADINGS[:5], lines))
        lines = list(passes(record, op))
        if lines:
            parts.append("\nForward and backward apart:\n\n" + _markdown(PASS_HEADINGS, lines))
        extra = [line[1:] for line in floors(record) if line[0] == op]
        if extra:
            parts.append(
                "\nBeside the products alone:\n\n"
                + _markdown(["shape", "dtype", "our time"], extra)
            )
        step_on_gpu = cuda and op == "step"
        alone = "make gpu PART=2" if step_on_gpu else f"{again} test_{FILES.get(op, op)}"
        parts.append(f"\n`{alone}`\n")
        later = {
            f"commit `{case['commit']}`, {case['date']}"
            for case in record["cases"]
            if case["op"] == op and "commit" in case
        }
        if later:
            parts.append(f"\nMeasured again, in part or whole, at {'; '.join(sorted(later))}.\n")
    parts += _gpu_only(record)
    gaps = _gaps(record)
    if gaps:
        parts.append("\n### Not measured\n\n" + "".join(f"- {gap}\n" for gap in gaps))
    return "".join(parts)


def _gpu_only(record: dict[str, Any]) -> Iterator[str]:
    """What a GPU's record has besides: the step with tuned options, and each step's kernels."""
    lines = list(tuned(record))
    if lines:
        changed = [
            f"`{row['kernel']}` {row['key']}: {row['options']}, {_milliseconds(row['seconds'])} ms "
            f"for {_milliseconds(row['usual_seconds'])}"
            for row in record["tuned"]
            if row["options"] != row["usual"]
        ]
        headings = ["shape", "shipped options, ms", "tuned, ms", "tokens/s"]
        yield "\n### Tuned options\n\n" + _markdown(headings, lines) + "\n"
        yield "".join(f"- {line}\n" for line in changed) or "No kernel gained.\n"
        yield "\n`make gpu PART=4`\n"
    for name, kernels in record.get("profiles", {}).items():
        rows = [
            [f"`{row['kernel']}`", f"{row['calls']:.0f}", _milliseconds(row["seconds"]),
             f"{row['share']:.1%}"]
            for row in kernels[:PROFILE_ROWS]
        ]  # fmt: skip
        yield f"\n### Kernels of a step: {name}\n\n"
        yield _markdown(["kernel", "calls", "ms", "share"], rows)


def _gaps(record: dict[str, Any]) -> list[str]:
    """Cases without figures, and sides that could not run, with the reasons; a side is named once
    for all the cases it is missing from.
    """
    reasons: dict[tuple[str, str, str], int] = {}
    for case in record["cases"]:
        for name, why in case["missing"].items():
            reasons[case["op"], name, why] = reasons.get((case["op"], name, why), 0) + 1
    return [f"{name}: {why}" for name, why in record["skipped"].items()] + [
        f"{op}: {name}, in {count} {'case' if count == 1 else 'cases'}: {why}"
        for (op, name, why), count in reasons.items()
    ]


def _markdown(headings: list[str], lines: list[list[str]]) -> str:
    return "".join(
        f"| {' | '.join(cells)} |\n" for cells in (headings, ["---"] * len(headings), *lines)
    )
