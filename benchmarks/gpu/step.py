"""Part 2: the training step of three models, at 16k and 64k tokens, as users get it, launched
kernel by kernel, and by transformers.

Each side is an item: it has the GPU's memory to itself, and what ends its process ends no other
figure. All take `ROUNDS` samples, so that ratios are of medians of equal weight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from bertfast.bench import rates, steps, timing
from bertfast.bench.case import Setup, reason
from bertfast.bench.lengths import Lengths, full, wikitext
from bertfast.bench.timing import Samples, Side
from bertfast.config import EncoderConfig

from ..settings import CURRENT, Settings
from .items import Item, Missing
from .journal import Journal

ROUNDS = 12
KERNELS = 60  # rows of a profile
PROFILED = 3  # steps
SMALL = 20_000  # tokens, up to which sides are compared by their gradients


class Shape(NamedTuple):
    """A preset and the lengths of a batch."""

    preset: str
    lengths: Lengths


def shapes(quick: bool) -> list[Shape]:
    """16k and 64k tokens, of real lengths and of full ones."""
    if quick:
        return [Shape("bert-tiny", Lengths("mixed", (9, 5, 3)))]
    real, full_512 = (wikitext(128), wikitext(538)), (full(32, 512), full(128, 512))
    berts = [Shape("bert-base", lengths) for lengths in (*real, *full_512)]
    berts += [Shape("bert-large", lengths) for lengths in (*real, *full_512)]
    moderns = [Shape("modernbert-base", full(count, 1024)) for count in (16, 64)]
    return [*berts[:1], *berts[4:5], *moderns[:1], *berts[1:4], *berts[5:], *moderns[1:]]


def setup_of(shape: Shape, quick: bool, compiled: bool = True) -> Setup:
    """In bfloat16, which is what people train in."""
    config = EncoderConfig.preset(shape.preset, **({"vocab_size": 512} if quick else {}))
    return Setup(shape.lengths, config, torch.bfloat16, CURRENT.device, compiled)


def items(settings: Settings) -> list[Item]:
    """Ours at every shape; the peers' compiling, beside one another; then the peers."""
    quick, found = settings.quick, [Item("rates", measure_rates)]
    peers: list[Item] = []
    for shape in shapes(quick):
        name = f"{shape.preset}, {shape.lengths.name}"
        found += our_items(shape, quick)
        if shape.lengths.tokens < SMALL:
            found.append(Item(f"profile: {name}", partial(profile, shape, quick)))
        for peer in steps.peers_of(setup_of(shape, quick, compiled=not quick), ("sdpa",)):
            run = partial(measure_peer, shape, peer, quick)
            if peer.compiled:
                compiling = Item(f"compiling: {name}: {peer.name}", run, stage=1, seconds=140)
                found.append(replace(compiling, run=partial(warm_up, shape, peer, quick)))
            peers.append(Item(f"{name}: {peer.name}", run, stage=2, seconds=100))
    return found + sorted(peers, key=lambda item: "bfloat16 weights" not in item.name)


def our_items(shape: Shape, quick: bool, stage: int = 0, tuned: bool = False) -> Iterator[Item]:
    """Ours as one CUDA graph, which is what users get, and launched."""
    name = f"{shape.preset}, {shape.lengths.name}"
    yield Item(f"{name}: ours", partial(measure_ours, shape, quick, True, tuned), stage)
    if not tuned:
        launched = partial(measure_ours, shape, quick, False, False)
        yield Item(f"{name}: ours, launched", launched, stage)


def measure_rates(journal: Journal) -> None:
    """The sustained rate of products and the copy bandwidth, with the GPU's clock and power under
    that load.
    """
    names = ["matrix bfloat16", "copy"]
    found = rates.measure(CURRENT.device, names, CURRENT.quick)
    state = {}
    if CURRENT.device == "cuda":
        shape = rates.PRODUCTS["cuda"][0]
        state = rates.sustained(shape, torch.bfloat16, CURRENT.quick)[1]
    journal.write("rates", rates=found, state=state)


def case_of(setup: Setup, shape: Shape, tuned: bool = False) -> dict[str, Any]:
    """The case's record without its sides."""
    record = steps.empty_case(setup).description()
    record["shape"] = f"{shape.lengths.name}, {shape.preset}"
    return record | ({"tuned": True} if tuned else {})


def write_side(
    journal: Journal, case: dict[str, Any], side: Side, error: float | None = None
) -> None:
    """Times a side and writes it."""
    samples, rounds = timing.prepare([side], CURRENT.device, 0.0, CURRENT.quick)
    rounds = rounds if CURRENT.quick else ROUNDS
    timing.race([side], samples, rounds, CURRENT.device)
    one = samples[side.name]
    journal.write("side", case=case, name=side.name, error=error, **as_json(one))


def as_json(samples: Samples) -> dict[str, Any]:
    """Samples of a side, as a journal keeps them."""
    return {
        "kind": samples.kind,
        "calls": samples.calls,
        "seconds": samples.seconds,
        "part_seconds": samples.part_seconds,
        "peak_bytes": samples.peak_bytes,
        "timed": samples.timed,
    }


def as_samples(line: dict[str, Any]) -> Samples:
    """The same again."""
    return Samples(**{name: line[name] for name in as_json(Samples(""))})


def measure_ours(shape: Shape, quick: bool, graphed: bool, tuned: bool, journal: Journal) -> None:
    """The step of `bertfast pretrain`."""
    setup = setup_of(shape, quick)
    batch = steps.make_batch(shape.lengths, setup.config.vocab_size, setup.device)
    if graphed and setup.device == "cuda":
        side = steps.graph_side(setup.config, batch, setup.dtype, setup.device)
    else:
        side = steps.our_side(setup.config, batch, setup.dtype, setup.device)
    if not graphed:
        side = replace(side, name="bertfast, launched", kind="backend")
    write_side(journal, case_of(setup, shape, tuned), side)


def warm_up(shape: Shape, peer: steps.Peer, quick: bool, journal: Journal) -> None:
    """Compiles a peer, so that its own item finds what it needs in the compiler's cache."""
    setup = setup_of(shape, quick)
    batch = steps.make_batch(shape.lengths, setup.config.vocab_size, setup.device)
    steps.peer_side(setup, batch, peer)


def measure_peer(shape: Shape, peer: steps.Peer, quick: bool, journal: Journal) -> None:
    """A setting of transformers; one that cannot run is written as missing, with the reason."""
    setup = setup_of(shape, quick)
    case = case_of(setup, shape)
    batch = steps.make_batch(shape.lengths, setup.config.vocab_size, setup.device)
    try:
        side, error = steps.peer_side(setup, batch, peer), None
        if side.probe is not None and shape.lengths.tokens < SMALL:
            ours = steps.our_side(setup.config, batch, setup.dtype, setup.device)
            assert ours.probe is not None
            error = timing.relative_error(side.probe(), ours.probe())
            del ours
        write_side(journal, case, side, error)
    except Exception as failure:  # memory, a compiler, a library that is not there
        journal.write("side", case=case, name=peer.name, missing=reason(failure))
        raise Missing(reason(failure)) from failure


def profile(shape: Shape, quick: bool, journal: Journal) -> None:
    """The kernels of the step that users get, by the time that they take."""
    setup = setup_of(shape, quick)
    batch = steps.make_batch(shape.lengths, setup.config.vocab_size, setup.device)
    make = steps.graph_side if setup.device == "cuda" else steps.our_side
    step = make(setup.config, batch, setup.dtype, setup.device).run
    step()
    name = f"{shape.preset}, {shape.lengths.name}"
    journal.write("profile", name=name, kernels=kernel_table(step, setup.device))


def kernel_table(step: Callable[[], object], device: str) -> list[dict[str, Any]]:
    """Each kernel's name, calls and seconds in a step, and share of them all; the longest first. On
    the CPU ops stand for kernels.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # errors alone
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            step()
        timing.synchronize(device)
    where = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    found = []
    for event in profiler.key_averages():
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if event.device_type == where and own > 0:
            seconds, calls = own * 1e-6 / PROFILED, event.count / PROFILED
            found.append({"kernel": event.key[:200], "calls": calls, "seconds": seconds})
    whole = sum(row["seconds"] for row in found)
    found = [row | {"share": row["seconds"] / whole} for row in found]
    return sorted(found, key=lambda row: -row["seconds"])[:KERNELS]
