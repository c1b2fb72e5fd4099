"""``bertfast profile``: where a training step's time goes, op by op, beside the least that each op
could take.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from bertfast.errors import BertfastError
from bertfast.machine import describe_machine, versions
from bertfast.model import BertForMaskedLM
from bertfast.training.memory import keep_freed_memory

from . import floors, options, rates, steps
from .case import Setup
from .timing import synchronize

WARMUP, STEPS = 3, 5
# An event belongs to the first of these that its name matches, or else to what its caller belongs
# to. Ours come first: a product inside the loss is the loss's. The forward of a differentiable
# custom op is recorded under its autograd class's name.
OPS = {
    "attention backward": r"bertfast\W+attention_backward|attention\w*Backward",
    "attention forward": r"bertfast\W*_?attention",
    "linear_cross_entropy": r"bertfast\W*_?linear_cross_entropy",
    "layer norm": r"bertfast\W*_?add_layer_norm",
    "gelu": r"bertfast\W*_?bias_gelu",
    "embedding": r"bertfast\W*_?(embed|sum_rows)",
    "gather_rows": r"bertfast\W*_?(gather|scatter)_rows",
    "rotary": r"bertfast\W*_?rotary",
    "dropout": r"bertfast\W*_?dropout",
    "optimizer": r"bertfast\W*_?(adamw|gradient_norm)|Optimizer\.",
}
PLAIN = {
    "matrix products": r"aten::(add|b|badd)?mm_?$|aten::(linear|matmul)$|mkldnn\W+_?linear",
    "copies and casts": r"aten::(copy_|_to_copy|to|contiguous|clone|cat)$",
    "fills": r"aten::(fill_|zero_|zeros|zeros_like|masked_fill_?)$",
    "sums": r"aten::(add_?|sum|mul_?|div_?)$",
}


def profile(setup: Setup, trace: Path | None = None) -> dict[str, Any]:
    """Runs training steps of our engine under PyTorch's profiler.

    Args:
        setup: the lengths, model, dtype and device.
        trace: file for the Chrome trace (chrome://tracing, ui.perfetto.dev); None for none.

    Returns:
        The machine, its rates, a step's seconds without the profiler and with it, and "ops". That
        holds, by name, the seconds of a step on the device with the profiler, their share, and the
        floor in seconds. The floor is None where nothing need be done. Last comes the floor's share
        of those seconds.

    Raises:
        BertfastError: the trace cannot be written.
    """
    options.check_trace(trace)
    keep_freed_memory()
    config, lengths, device = setup.config, setup.lengths, setup.device
    batch = steps.make_batch(lengths, config.vocab_size, device)
    side = steps.our_side(config, batch, setup.dtype, device)
    measured = rates.measure(device, [f"matrix {setup.dtype_name}", "copy"])
    for _ in range(WARMUP):
        side.run()
    plain = sorted(_timed(side.run, device) for _ in range(STEPS))[STEPS // 2]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # errors alone
    with torch.profiler.profile(activities=activities) as profiler:
        whole = _timed(lambda: [side.run() for _ in range(STEPS)], device) / STEPS
    if trace is not None:
        try:
            profiler.export_chrome_trace(str(trace))
        except (OSError, RuntimeError) as error:
            raise BertfastError(f"{trace}: the trace cannot be written ({error})") from error
    seconds = _seconds_by_op(profiler.events() or [], device)
    # What is left of a step is the host's own work between the ops; on a GPU it runs beside them.
    if device == "cpu":
        seconds["between the ops"] = max(0.0, whole - sum(seconds.values()))
    masked, parameters = (
        steps.masked_count(lengths.tokens),
        BertForMaskedLM(config).num_parameters(),
    )
    least = floors.step_ops(config, lengths, masked, parameters, setup.itemsize)
    total = sum(seconds.values())
    ops = {}
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        floor = least[name].seconds(measured, setup.dtype_name) if name in least else None
        reached = None if floor is None or value == 0 else floor / value
        ops[name] = {"seconds": value, "share": value / total, "floor": floor, "reached": reached}
    return {
        "machine": describe_machine(device),
        "versions": versions(),
        "rates": measured,
        "model": (
            f"{config.num_hidden_layers} layers of {config.hidden_size}, "
            f"vocabulary {config.vocab_size:,}"
        ),
        "batch": f"{lengths.name}: {len(lengths.values)} sequences, {lengths.tokens} tokens",
        "dtype": setup.dtype_name,
        "step_seconds": plain,
        "profiled_seconds": whole,
        "ops": ops,
    }


def _timed(run: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def _seconds_by_op(events: Any, device: str) -> dict[str, float]:
    """Seconds of a step by op: each event's own time, given to the op that it is part of."""
    found: dict[str, float] = {}
    for event in events:
        if event.is_async or event.device_type != torch.autograd.DeviceType.CPU:
            continue
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if own > 0 and (op := op_of(event)) is not None:
            found[op] = found.get(op, 0.0) + own * 1e-6 / STEPS
    return found


def op_of(event: Any) -> str | None:
    """The op that an event is part of; None for the profiler's own."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    if names[0].startswith("ProfilerStep"):
        return None
    return match(names) or "other"


def match(names: list[str]) -> str | None:
    """The first op of `OPS`, or else of `PLAIN`, that one of the names, inner ones first, belongs
    to.
    """
    for table in (OPS, PLAIN):
        for name in names:
            for op, pattern in table.items():
                if re.search(pattern, name):
                    return op
    return None


def _title(found: dict[str, Any]) -> str:
    plain, whole = found["step_seconds"] * 1e3, found["profiled_seconds"] * 1e3
    return f"a training step: {plain:,.1f} ms; under the profiler, as below, {whole:,.1f} ms"


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{found['machine']['name']}; {found['model']}; {found['batch']}; {found['dtype']}",
        markup=False,
    )
    table = Table("op", title=_title(found), title_justify="left")
    for heading in ("ms", "share", "floor, ms", "reached"):
        table.add_column(heading, justify="right")
    for name, op in found["ops"].items():
        floor, reached = op["floor"], op["reached"]
        table.add_row(
            name,
            f"{op['seconds'] * 1e3:,.2f}",
            f"{op['share']:.1%}",
            "" if floor is None else f"{floor * 1e3:,.2f}",
            "" if reached is None else f"{reached:.0%}",
        )
    console.print(table)
    measured = found["rates"]
    console.print(
        f"floor: useful FLOPs at the measured {measured['matrix ' + found['dtype']] / 1e9:,.0f} "
        f"GFLOP/s, or bytes at the measured {measured['copy'] / 1e9:,.1f} GB/s, "
        "whichever takes longer; what has none need not be done"
    )
