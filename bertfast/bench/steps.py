"""The training step of a masked LM as each side runs it: ours packed, transformers' padded with
labels of -100 where nothing is predicted.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bertfast.config import EncoderConfig
from bertfast.model import PreTrainedModel, member_class
from bertfast.packed import PackedBatch
from bertfast.training.graph import WARMUP, GraphedStep
from bertfast.training.optimizer import build_optimizer
from bertfast.training.precision import Masters

from . import floors
from .case import Case, Setup, reason
from .lengths import Lengths
from .timing import GRAPH, LAUNCHES, Side

MASKED_SHARE = 0.15
# bfloat16 rounds at every layer, and sides round at different places.
TOLERANCE = {"float32": 1e-3, "bfloat16": 8e-2}
COMPARED = 4  # matrices whose gradients sides are compared by, the tied table among them


@dataclass(frozen=True)
class Batch:
    """One batch in both forms."""

    packed: PackedBatch
    padded: dict[str, Tensor]


def masked_count(tokens: int) -> int:
    """How many of so many tokens are predicted: 15 %, and one at least."""
    return max(1, round(MASKED_SHARE * tokens))


def make_batch(lengths: Lengths, vocab_size: int, device: str) -> Batch:
    """Random ids, 15 % of them masked, packed and padded to the longest; every id is as likely,
    since no op's work depends on it.
    """
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (lengths.tokens,), generator=draw)
    masked = (
        torch.randperm(lengths.tokens, generator=draw)[: masked_count(lengths.tokens)].sort().values
    )
    labels = torch.randint(vocab_size, masked.shape, generator=draw)
    packed = PackedBatch(
        input_ids=ids,
        segment_ids=torch.zeros_like(ids),
        position_ids=torch.cat([torch.arange(length) for length in lengths.values]),
        cu_seqlens=lengths.cu_seqlens("cpu"),
        max_seqlen=lengths.longest,
        masked_positions=masked,
        masked_labels=labels,
    ).to(torch.device(device))
    real, rows = lengths.mask("cpu"), lengths.rows("cpu")
    padded_ids, padded_labels = (
        torch.zeros(real.numel(), dtype=torch.long),
        torch.full((real.numel(),), -100),
    )
    padded_ids[rows] = ids
    padded_labels[rows[masked]] = labels
    padded = {
        "input_ids": padded_ids.view(real.shape),
        "labels": padded_labels.view(real.shape),
        "token_type_ids": torch.zeros(real.shape, dtype=torch.long),
        "attention_mask": real.long(),
    }
    return Batch(packed, {name: value.to(device) for name, value in padded.items()})


def masked_lm(config: EncoderConfig, device: str = "cpu") -> PreTrainedModel:
    """The member's masked LM, the same random weights each time on a device."""
    torch.manual_seed(0)
    with torch.device(device):
        return member_class(config, "ForMaskedLM")(config)


def case(setup: Setup, *, attentions: tuple[str, ...] = ("eager", "sdpa")) -> Case:
    """Forward, backward and optimizer, against transformers with each of these attentions, and
    compiled.
    """
    batch = make_batch(setup.lengths, setup.config.vocab_size, setup.device)
    torch._dynamo.reset()
    ours = our_sides(setup.config, batch, setup.dtype, setup.device)
    peers, missing = [], {}
    for peer in peers_of(setup, attentions):
        setup.say(f"step: {'compiling' if peer.compiled else 'making'} {peer.name}")
        try:
            peers.append(peer_side(setup, batch, peer))
        # a compiler fails in many ways; the record says how, and the other peers remain
        except Exception as error:
            missing[peer.name] = reason(error)
    found = empty_case(setup)
    return replace(found, sides=[*ours, *peers], missing=missing)


def empty_case(setup: Setup) -> Case:
    """The case of that step without a side."""
    config, lengths = setup.config, setup.lengths
    masked = masked_count(lengths.tokens)
    with torch.device("meta"):
        parameters = member_class(config, "ForMaskedLM")(config).num_parameters()
    ops = floors.step_ops(config, lengths, masked, parameters, setup.itemsize)
    floor = sum(ops.values(), floors.Floor(0, 0))
    return Case(
        "step",
        lengths.name,
        setup.dtype_name,
        [],
        floors.Floor(floors.step_flops(config, lengths, masked), floor.bytes),
        products=True,
        tolerance=TOLERANCE[setup.dtype_name],
        facts={
            "fill": lengths.fill,
            "tokens": lengths.tokens,
            "masked": masked,
            "model": (
                f"{config.num_hidden_layers} layers of {config.hidden_size}, "
                f"vocabulary {config.vocab_size:,}"
            ),
        },
    )


def our_sides(config: EncoderConfig, batch: Batch, dtype: torch.dtype, device: str) -> list[Side]:
    """What a user gets, the first one "ours": on a GPU the step as one CUDA graph, and then the
    same launched kernel by kernel.
    """
    launched = our_side(config, batch, dtype, device)
    if device != "cuda":
        return [launched]
    graphed = replace(graph_side(config, batch, dtype, device), probe=launched.probe)
    return [graphed, replace(launched, name="bertfast, launched", kind="backend")]


def our_side(config: EncoderConfig, batch: Batch, dtype: torch.dtype, device: str) -> Side:
    """The step of `bertfast pretrain` without a CUDA graph: in bfloat16 the weights are bfloat16
    and the optimizer updates float32 masters.
    """
    model = masked_lm(config, device).train()
    masters = Masters(model, "bf16" if dtype == torch.bfloat16 else "fp32")
    optimizer = build_optimizer(masters, 1e-4)
    seeds = iter(range(1 << 62))

    def differentiate() -> Tensor:
        loss: Tensor = model(batch.packed, seed=next(seeds)).loss
        loss.backward()
        return loss

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    launched = f"{LAUNCHES}: kernel by kernel, for comparison" if device == "cuda" else None
    step = _in_parts(differentiate, update, device)
    return Side("bertfast", "ours", step, _probe(model, differentiate), launched)


def _in_parts(
    differentiate: Callable[[], object], update: Callable[[], None], device: str
) -> Callable[[], float | None]:
    """The step; on the CPU it gives the seconds without the update. Waiting for a GPU in its middle
    would cost time, and cannot be recorded.
    """

    def step() -> float | None:
        start = time.perf_counter()
        differentiate()
        part = time.perf_counter() - start if device == "cpu" else None
        update()
        return part

    return step


def graph_side(config: EncoderConfig, batch: Batch, dtype: torch.dtype, device: str) -> Side:
    """The step as `bertfast pretrain` sends it to a GPU by default: one CUDA graph, gradients
    clipped. It gives no gradients to compare.
    """
    model = masked_lm(config, device).train()
    optimizer = build_optimizer(Masters(model, "bf16" if dtype == torch.bfloat16 else "fp32"), 1e-4)
    graphed = GraphedStep(model, optimizer, 1.0, batch.packed.sizes, torch.device(device))
    ages = itertools.count(1)

    def step() -> None:
        age = next(ages)
        graphed(batch.packed, age, 1e-4, age)

    for _ in range(WARMUP + 1):  # from here on every call is a replay
        step()
    timed = GRAPH if graphed.graph is not None else f"{LAUNCHES}: the step could not be recorded"
    return Side("bertfast, CUDA graph", "ours", step, timed=timed)


@dataclass(frozen=True)
class Peer:
    """A setting of transformers: its attention, whether it is compiled, and the casts.

    Weights in bfloat16 have no float32 masters, so small updates are lost; the setting is there
    because it is fast.
    """

    attention: str
    compiled: bool
    cast: str

    @property
    def name(self) -> str:
        compiled, cast = ", compiled" * self.compiled, f", {self.cast}" if self.cast else ""
        return f"transformers {self.attention}{compiled}{cast}"


def peers_of(setup: Setup, attentions: tuple[str, ...] = ("eager", "sdpa")) -> list[Peer]:
    """transformers with each of these attentions, and the last one compiled; in bfloat16 under
    autocast, and with bfloat16 weights.
    """
    casts = ["autocast", "bfloat16 weights"] if setup.dtype == torch.bfloat16 else [""]
    variants = [(attention, False) for attention in attentions]
    variants += [(attentions[-1], True)] if setup.compiled else []
    return [Peer(*variant, cast) for cast in casts for variant in variants]


def peer_side(setup: Setup, batch: Batch, peer: Peer) -> Side:
    """transformers' masked LM of our weights, warmed up.

    Raises:
        Exception: whatever keeps it from running here.
    """
    import transformers

    config, device = setup.config, setup.device
    ours = masked_lm(config, device)
    shape = transformers.AutoConfig.for_model(**config.to_dict())
    half = peer.cast == "bfloat16 weights"
    with torch.device(device):
        model = transformers.AutoModelForMaskedLM.from_config(
            shape, attn_implementation=peer.attention
        )
    names = {name for name, _ in model.named_parameters()}
    kept = {name: value for name, value in ours.state_dict().items() if name in names}
    model.load_state_dict(kept, strict=False)
    del ours, kept
    model = model.to(device, torch.bfloat16 if half else torch.float32).train()
    # Recorded, the optimizer's counts must stand on the device.
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True, capturable=device == "cuda")
    forward = torch.compile(model) if peer.compiled else model
    taken = inspect.signature(model.forward).parameters
    padded = {name: value for name, value in batch.padded.items() if name in taken}
    if bool(padded["attention_mask"].all()):
        del padded["attention_mask"]  # a user whose batch is full gives none

    def differentiate() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=peer.cast == "autocast"):
            loss: Tensor = forward(**padded).loss
        loss.backward()
        return loss

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    differentiate()  # compiles, or fails, now
    _clear(model.parameters())
    # The compiled model's parameters are the plain one's: it is compared without compiling it a
    # second time for evaluation.
    probe = None if peer.compiled else _probe(model, differentiate)
    return Side(peer.name, "peer", _in_parts(differentiate, update, device), probe)


def _probe(
    model: nn.Module, differentiate: Callable[[], Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """Loss and gradients without dropout."""
    # Of matrices: a key's bias has a gradient of nothing.
    matrices = sorted(name for name, weight in model.named_parameters() if weight.dim() == 2)
    names = matrices[:: max(1, len(matrices) // COMPARED)]

    def probe() -> tuple[Tensor, ...]:
        _clear(model.parameters())
        model.eval()
        loss = differentiate()
        model.train()
        parameters = dict(model.named_parameters())
        gradients = [parameters[name].grad for name in names]
        assert all(gradient is not None for gradient in gradients)
        found = loss.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)
        _clear(model.parameters())
        return found

    return probe


def _clear(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
