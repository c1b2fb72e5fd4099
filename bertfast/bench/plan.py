"""``bertfast plan``: hours and memory of a pretraining run on many GPUs, from shapes. A model, not
a measurement.

A GPU's own time for its share of an update is the sum over the ops of the longer of computing and
moving. Each is at the best that the GPU reaches (`floors.py`, `gpus.py`). Where the user gives what
was measured, that is taken instead. DDP's gradients are summed in buckets while the backward runs:

    sent by each GPU  = in its machine      2 (n - 1) / n of the gradients, by NVLink,
                        between N machines  2 (N - 1) / N of an n-th of them, by the network
    exposed           = what the backward does not hide, and the last bucket
    a step            = computing + exposed

Each bucket also waits for its messages' ways: through the machine as a ring, between machines as a
tree. The model has no straggler, no slower link and no uneven batch, so that a run takes longer.

FSDP gathers the weights for the forward and once more for the backward, and scatters the sums: half
as much again is sent.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.kernels import dispatch, use_backend
from bertfast.model import member_class

from . import floors, steps
from .gpus import COPY_SHARE, FAR_HOP, GPUS, HOP, LINK_SHARE, NODE, Gpu
from .lengths import Lengths

BUCKET = 25 * 2**20  # bytes of gradients that DDP sums at a time
BACKWARD = 2 / 3  # of a step's products are the backward's
ITEMSIZE = 2  # of weights and activations, in bfloat16
# Bytes a parameter: the model's, its gradient and that in DDP's bucket in bfloat16. In float32, the
# master, its two moments and the gradient that ranks sum.
COPIES = 3 * ITEMSIZE + 4 * 4


@dataclass(frozen=True)
class Plan:
    """A run on so many GPUs, modelled.

    Attributes:
        gpus: how many.
        tokens: of an update on each.
        computing: seconds of a step on one GPU.
        sending: seconds that the gradients take, hidden or not.
        exposed: of these, seconds that the backward does not hide.
        efficiency: share of the step that computes.
        rate: tokens a second of all GPUs.
        hours: of the whole run.
        cost: of them all, where a price was given.
        ddp, fsdp: bytes on each GPU, weights and states and activations; None where these are not
            known.
        fsdp_hours: hours where parameters are sharded.
    """

    gpus: int
    tokens: int
    computing: float
    sending: float
    exposed: float
    efficiency: float
    rate: float
    hours: float
    cost: float | None
    ddp: float | None
    fsdp: float | None
    fsdp_hours: float


def plan(
    config: EncoderConfig,
    gpu: Gpu,
    count: int,
    run_tokens: float,
    *,
    batch_tokens: int,
    seq_len: int,
    reduction: int = 4,
    rate: float | None = None,
    price: float | None = None,
    kept: float | None = None,
) -> Plan:
    """A run of so many tokens.

    Args:
        config: of the model.
        gpu: of which there are ``count``, eight a machine.
        run_tokens: of the whole run.
        batch_tokens: of an update on each GPU.
        seq_len: of every sequence.
        reduction: bytes of a gradient that travels.
        rate: tokens a second that one GPU was measured at; None models it.
        price: of an hour of one GPU.
        kept: `activation_bytes` of its tokens; None where these are not known.
    """
    parameters, largest = _parameters(config)
    tokens = max(batch_tokens // seq_len, 1) * seq_len
    computing = tokens / rate if rate else compute_seconds(config, gpu, tokens, seq_len, parameters)
    sending = reduce_seconds(parameters * reduction, gpu, count)
    exposed = hidden_by(computing, sending, parameters * reduction)
    # Weights travel in bfloat16: gathered twice, beside half of a sum, which scatters alone.
    gathered = reduce_seconds(parameters * ITEMSIZE, gpu, count)
    sharded = hidden_by(computing, sending / 2 + gathered, parameters * reduction)
    step = computing + exposed
    total = count * tokens / step
    hours = run_tokens / total / 3600
    return Plan(
        gpus=count,
        tokens=tokens,
        computing=computing,
        sending=sending,
        exposed=exposed,
        efficiency=computing / step,
        rate=total,
        hours=hours,
        cost=None if price is None else hours * count * price,
        ddp=None if kept is None else parameters * COPIES + kept,
        fsdp=None if kept is None else parameters * COPIES / count + 2 * largest * ITEMSIZE + kept,
        fsdp_hours=hours * (computing + sharded) / step,
    )


def compute_seconds(
    config: EncoderConfig, gpu: Gpu, tokens: int, seq_len: int, parameters: int
) -> float:
    """Of an update of one GPU by itself: no op is faster than its floor."""
    lengths = Lengths("whole sequences", (seq_len,) * (tokens // seq_len))
    masked = steps.masked_count(lengths.tokens)
    ops = floors.step_ops(config, lengths, masked, parameters, ITEMSIZE)
    rates = {"matrix bfloat16": gpu.rate, "copy": gpu.bandwidth * COPY_SHARE}
    return sum(floor.seconds(rates, "bfloat16") for floor in ops.values())


def reduce_seconds(size: float, gpu: Gpu, count: int) -> float:
    """Of summing so many bytes over the GPUs: in each machine, between the machines, and back."""
    if count == 1:
        return 0.0
    inside, machines = min(count, NODE), math.ceil(count / NODE)
    buckets = max(1, math.ceil(size / BUCKET))
    near = 2 * (inside - 1) / inside * size / (gpu.nvlink * LINK_SHARE)
    far = 2 * (machines - 1) / machines * size / inside / (gpu.network * LINK_SHARE)
    waiting = 2 * (inside - 1) * HOP + 2 * math.ceil(math.log2(machines)) * FAR_HOP
    return near + far + buckets * waiting


def hidden_by(computing: float, sending: float, size: float) -> float:
    """The seconds of ``sending`` that a backward does not hide: its last bucket is ready when it
    ends.
    """
    buckets = max(1, math.ceil(size / BUCKET))
    behind = computing * BACKWARD * (1 - 1 / buckets)
    return max(sending / buckets, sending - behind)


def _parameters(config: EncoderConfig) -> tuple[int, int]:
    """How many the model has, and those of the largest part that FSDP gathers at once."""
    with torch.device("meta"):
        model = member_class(config, "ForMaskedLM")(config)
    total = sum(x.numel() for x in model.parameters())
    return total, max(x.numel() for x in model.parameters())


def activation_bytes(config: EncoderConfig, tokens: int, seq_len: int) -> int | None:
    """What the forward keeps for the backward, recorded on the meta device, which has shapes and no
    numbers; None where Triton is not installed.
    """
    lengths = Lengths("whole sequences", (seq_len,) * (tokens // seq_len))
    batch = steps.make_batch(lengths, config.vocab_size, "cpu").packed.to("meta")
    with torch.device("meta"):
        model = member_class(config, "ForMaskedLM")(config).train().bfloat16()
    own = {x.untyped_storage()._cdata for x in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return x

    try:
        with use_backend("triton"), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = model(batch, seed=1)
    except dispatch.BackendError:
        return None
    del output
    return sum(storage.nbytes() for storage in kept.values())


def plans(
    shape: str,
    run_tokens: float,
    counts: list[int],
    gpu: str,
    batch_tokens: int,
    update_tokens: float | None,
    seq_len: int,
    reduction: str,
    rate: float | None,
    price: float | None,
) -> dict[str, Any]:
    """The command's answer, for each number of GPUs.

    Raises:
        BertfastError: fewer tokens than GPUs have sequences for.
    """
    config = EncoderConfig.preset(shape)
    if seq_len > config.max_length:
        raise BertfastError(f"--seq-len is {seq_len} and {shape} has {config.max_length} positions")
    found = []
    activations: dict[int, int | None] = {}
    for count in counts:
        tokens = batch_tokens if update_tokens is None else int(update_tokens / count)
        if tokens < seq_len:
            raise BertfastError(
                f"{tokens:,} tokens of an update on each of {count:,} GPUs are less than a "
                f"sequence of {seq_len}; take fewer --gpus or more tokens"
            )
        if tokens not in activations:
            activations[tokens] = activation_bytes(config, tokens // seq_len * seq_len, seq_len)
        each = plan(
            config,
            GPUS[gpu],
            count,
            run_tokens,
            batch_tokens=tokens,
            seq_len=seq_len,
            reduction=2 if reduction == "bf16" else 4,
            rate=rate,
            price=price,
            kept=activations[tokens],
        )
        found.append(asdict(each))
    return {
        "modelled": True,
        "rate": "modelled" if rate is None else "measured on one GPU, modelled on more",
        "gpu": GPUS[gpu].name,
        "memory": GPUS[gpu].memory,
        "model": shape,
        "parameters": _parameters(config)[0],
        "tokens": run_tokens,
        "plans": found,
    }


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    plans = found["plans"]
    print(
        f"{found['model']}, {found['parameters'] / 1e6:,.0f} M parameters; {found['gpu']}; "
        f"{found['tokens'] / 1e9:,.6g} G tokens; rate: {found['rate']}"
    )
    print("modelled, not measured:")
    columns = {
        "GPUs": [f"{each['gpus']:,}" for each in plans],
        "tokens each": [f"{each['tokens']:,}" for each in plans],
        "compute ms": [f"{each['computing'] * 1e3:,.1f}" for each in plans],
        "exposed ms": [f"{each['exposed'] * 1e3:,.1f}" for each in plans],
        "efficiency": [f"{each['efficiency']:.0%}" for each in plans],
        "M tok/s": [f"{each['rate'] / 1e6:,.4g}" for each in plans],
        "hours": [f"{each['hours']:,.3g}" for each in plans],
        "FSDP hours": [f"{each['fsdp_hours']:,.3g}" for each in plans],
        "DDP GB": [_gigabytes(each["ddp"], found["memory"]) for each in plans],
        "FSDP GB": [_gigabytes(each["fsdp"], found["memory"]) for each in plans],
    }
    if any(each["cost"] is not None for each in plans):
        columns["cost"] = [f"{each['cost']:,.0f}" for each in plans]
    widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
    for cells in zip(*((name, *values) for name, values in columns.items()), strict=True):
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    print("a model of shapes and data sheets, with no straggler; a run takes longer")
    if any("!" in cell for cell in columns["DDP GB"]):
        print("! is more than the GPU's memory: take smaller batches and more --accumulation")


def _gigabytes(size: float | None, memory: float) -> str:
    if size is None:
        return "?"
    return f"{size / 1e9:,.1f}{'!' * (size > memory)}"
