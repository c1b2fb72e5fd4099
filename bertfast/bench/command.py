"""``bertfast bench``: the ops or the training step on this machine and the user's own lengths,
beside what people use today.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bertfast.machine import describe_machine, versions
from bertfast.training.memory import keep_freed_memory
from bertfast.training.precision import find_device

from . import beside, options, rates, sentence_embedding, steps
from .case import Case, Setup
from .lengths import wikitext
from .ops import OPS
from .timing import NOISE_BOUND

PARAGRAPHS = {"cpu": 8, "cuda": 128}  # of WikiText, where the user gives no lengths
EMBEDDED = 512  # paragraphs, eight batches


def make_setup(
    shape: str,
    lengths: Path | None,
    dtype: str,
    compiled: bool = True,
    paragraphs: int | None = None,
    device: str | None = None,
) -> Setup:
    """What the cases are built for; without a file of lengths so many paragraphs of WikiText, or as
    many as suit the device.

    Raises:
        BertfastError: no such preset or dtype, or a length beyond the model's positions.
    """
    config = options.check_shape(shape, dtype)
    place = find_device(device).type
    if lengths is None:
        batch = wikitext(paragraphs or PARAGRAPHS[place])
    else:
        batch = options.read_lengths(lengths)
    options.check_fit(batch, config, shape)
    return Setup(batch, config, getattr(torch, dtype), place, compiled)


def embedding_cases(text: Path | None, folder: Path | None) -> list[Callable[[Setup], Case]]:
    """Makers of the cases of sentence embeddings: from text, and from tokens."""
    return [
        partial(sentence_embedding.case, tokenized=tokenized, text=text, folder=folder)
        for tokenized in (False, True)
    ]


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Within it SIGTERM raises KeyboardInterrupt as SIGINT does; the list gets the signal's
    number.
    """
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield got  # where Python lets no one set a handler
        return

    def stop(number: int, _: Any) -> None:
        got.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bench(
    setup: Setup,
    ops: list[str],
    step: bool,
    seconds: float,
    on_case: Callable[[dict[str, Any]], None] | None = None,
    more: Sequence[Callable[[Setup], Case]] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures ops (all, if none is named and nothing else is asked for), the step and more.

    SIGINT and SIGTERM end it early: what was measured is returned, with "stopped", the signal's
    number.

    Args:
        setup: the lengths, model, dtype and device.
        ops: names out of `OPS`.
        step: whether to measure the training step.
        seconds: of timing for each case.
        on_case: called with each case's record as it comes.
        more: makers of other cases.
        say: told what comes next, a line each.

    Raises:
        BertfastError: no such op, or a peer computes something else than we do.
    """
    options.check_ops(ops)
    chosen = ops or ([] if step or more else list(OPS))
    builds: list[tuple[str, Callable[[Setup], Case]]] = [
        (op, build) for op in chosen for build in OPS[op]
    ]
    builds += [("step", steps.case)] if step else []
    builds += [("sentence embeddings", build) for build in more]
    keep_freed_memory()
    found: dict[str, Any] = {
        "machine": describe_machine(setup.device),
        "versions": versions(),
        "rates": {},
        "lengths": list(setup.lengths.values),
        "cases": [],
    }
    shown = 0
    with stop_signals() as stopped:
        try:
            for number, (name, build) in enumerate(builds, 1):
                say(f"case {number} of {len(builds)}, {name}")
                torch.manual_seed(0)
                record = build(replace(setup, say=say)).run(setup.device, seconds, say)
                found["cases"].append(record)
                rate = rates.needed(record)
                if rate not in found["rates"] and not stopped:
                    say(f"measuring this machine's rate, {rate}, for some {rates.SECONDS:.0f} s")
                    found["rates"] |= rates.measure(setup.device, [rate])
                shown = number
                if on_case is not None:
                    on_case(record | {"rates": found["rates"]})
                if stopped:
                    break
        except KeyboardInterrupt:
            if not stopped:  # of a thread that got no handler
                raise
    for record in found["cases"][shown:]:
        if on_case is not None:
            on_case(record | {"rates": found["rates"]})
    if stopped:
        found["stopped"] = stopped[0]
        say(f"stopped; {len(found['cases'])} of {len(builds)} cases were measured")
    return found


def bench_beside(
    shape: str, lengths: Path | None, dtype: str, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measures the training step beside other work, on the CPU; SIGINT and SIGTERM end it early, as
    of `bench`.

    Raises:
        BertfastError: as of `make_setup`; or a training ended before its time.
    """
    setup = make_setup(shape, lengths, dtype, paragraphs=PARAGRAPHS["cpu"])
    with stop_signals() as stopped:
        found = beside.measure(setup, seconds, say)
    if stopped:
        found["stopped"] = stopped[0]
    return found


def show(case: dict[str, Any]) -> None:
    """Prints a case's table, and says when it shows nothing."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(
        title=escape(f"{case['op']}: {case['shape']}, {case['dtype']}"), title_justify="left"
    )
    for heading, side in (
        ("", "left"),
        ("ms", "right"),
        ("time over ours", "right"),
        ("quartiles", "right"),
        ("peak, MiB", "right"),
    ):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for name, side in sorted(case["sides"].items(), key=lambda item: item[1]["median"]):
        own, peak, spread = side["kind"] == "ours", side["peak_bytes"], side["ratio"]
        table.add_row(
            f"[bold]{escape(name)}[/bold]" if own else escape(name),
            f"{side['median'] * 1e3:,.3f}" + (" ~" if side["noisy"] else ""),
            "" if own else f"{spread['median']:.2f}x",
            "" if own else f"{spread['low']:.2f} to {spread['high']:.2f}",
            "?" if peak is None else f"{peak / 2**20:,.1f}",
        )
    console.print(table)
    ours = next(side for side in case["sides"].values() if side["kind"] == "ours")
    console.print(escape(_share(case, ours)))
    noisy = [name for name, side in case["sides"].items() if side["noisy"]]
    if noisy:
        console.print(
            f"too noisy to conclude: the quartiles of {escape(', '.join(noisy))} lie more than "
            f"{NOISE_BOUND:.0%} of the median apart. Stop what else runs here, "
            "or give it more --seconds"
        )
    for name, why in case["missing"].items():
        console.print(f"not measured: {name}: {why}", markup=False)
    console.print()


def _share(case: dict[str, Any], ours: dict[str, Any]) -> str:
    floor, found = case["floor"], case["rates"]
    if rates.needed(case) not in found:
        return "floor: this machine's rate was not measured any more"
    if case["flops"]:
        share = floor["flops"] / found[f"matrix {case['dtype']}"] / ours["median"]
        return (
            f"floor: {floor['flops'] / 1e9:,.2f} GFLOP; {share:.0%} of the measured matrix rate "
            "is reached"
        )
    share = floor["bytes"] / found["copy"] / ours["median"]
    return (
        f"floor: {floor['bytes'] / 1e6:,.1f} MB; {share:.0%} of the measured copy bandwidth is "
        "reached"
    )
