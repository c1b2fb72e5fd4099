"""The training step of a masked LM as each side runs it: ours packed, transformers' padded with
labels of -100 where nothing is predicted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.config import EncoderConfig
from bertfast.model import BertForMaskedLM
from bertfast.packed import PackedBatch
from bertfast.training.graph import WARMUP, GraphedStep
from bertfast.training.optimizer import build_optimizer
from bertfast.training.precision import Masters

from . import floors
from .case import Case, Setup, reason
from .lengths import Lengths
from .timing import Side, synchronize

MASKED_SHARE = 0.15
# bfloat16 rounds at every layer, and sides round at different places.
TOLERANCE = {"float32": 1e-3, "bfloat16": 8e-2}
# Some of the gradients that sides are compared by: of the tied table, of the first and of the last
# layer.
COMPARED = (
    "bert.embeddings.word_embeddings.weight",
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.{last}.output.dense.weight",
    "cls.predictions.bias",
)


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


def case(setup: Setup, *, attentions: tuple[str, ...] = ("eager", "sdpa")) -> Case:
    """Forward, backward and optimizer, against transformers with each of these attentions, and
    compiled.
    """
    config, lengths = setup.config, setup.lengths
    batch = make_batch(lengths, config.vocab_size, setup.device)
    masked = masked_count(lengths.tokens)
    torch._dynamo.reset()
    ours = our_side(config, batch, setup.dtype, setup.device)
    peers, missing = peer_sides(setup, batch, attentions)
    ops = floors.step_ops(
        config, lengths, masked, BertForMaskedLM(config).num_parameters(), setup.itemsize
    )
    floor = sum(ops.values(), floors.Floor(0, 0))
    return Case(
        "step",
        lengths.name,
        setup.dtype_name,
        [ours, *graph_sides(config, batch, setup.dtype, setup.device), *peers],
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
        missing=missing,
    )


def our_side(config: EncoderConfig, batch: Batch, dtype: torch.dtype, device: str) -> Side:
    """The step of `bertfast pretrain`: in bfloat16 the weights are bfloat16 and the optimizer
    updates float32 masters.
    """
    torch.manual_seed(0)
    model = BertForMaskedLM(config).to(device).train()
    masters = Masters(model, "bf16" if dtype == torch.bfloat16 else "fp32")
    optimizer = build_optimizer(masters, 1e-4)
    seeds = iter(range(1 << 62))

    def differentiate() -> Tensor:
        loss = model(batch.packed, seed=next(seeds)).loss
        loss.backward()
        return loss

    def step() -> float:
        start = time.perf_counter()
        differentiate()
        synchronize(device)
        part = time.perf_counter() - start
        optimizer.step()
        optimizer.zero_grad()
        return part

    return Side("bertfast", "ours", step, _probe(model, differentiate, config))


def graph_sides(config: EncoderConfig, batch: Batch, dtype: torch.dtype, device: str) -> list[Side]:
    """On a GPU, the same step as `bertfast pretrain` sends it by default: one CUDA graph, gradients
    clipped. It gives no gradients to compare.
    """
    if device != "cuda":
        return []
    torch.manual_seed(0)
    model = BertForMaskedLM(config).to(device).train()
    optimizer = build_optimizer(Masters(model, "bf16" if dtype == torch.bfloat16 else "fp32"), 1e-4)
    graphed = GraphedStep(model, optimizer, 1.0, batch.packed.sizes, torch.device(device))
    ages = itertools.count(1)

    def step() -> None:
        age = next(ages)
        graphed(batch.packed, age, 1e-4, age)

    for _ in range(WARMUP + 1):  # from here on every call is a replay
        step()
    return [Side("bertfast, CUDA graph", "backend", step)]


def peer_sides(
    setup: Setup, batch: Batch, attentions: tuple[str, ...]
) -> tuple[list[Side], dict[str, str]]:
    """transformers' BertForMaskedLM with each of its attentions, and the last one compiled; in
    bfloat16 under autocast, and with bfloat16 weights.

    Weights in bfloat16 have no float32 masters, so small updates are lost; the side is there
    because it is fast.
    """
    try:
        import transformers
    except ImportError as error:
        return [], {"transformers": reason(error)}
    casts = ["autocast", "bfloat16 weights"] if setup.dtype == torch.bfloat16 else [""]
    variants = [(attention, False) for attention in attentions] + (
        [(attentions[-1], True)] if setup.compiled else []
    )
    sides, missing = [], {}
    for cast in casts:
        for attention, is_compiled in variants:
            name = (
                f"transformers {attention}"
                + (", compiled" if is_compiled else "")
                + (f", {cast}" if cast else "")
            )
            setup.say(f"step: {'compiling' if is_compiled else 'making'} {name}")
            try:
                side = _peer(
                    transformers,
                    setup.config,
                    batch,
                    setup.device,
                    name,
                    attention,
                    is_compiled,
                    cast,
                )
            # a compiler fails in many ways; the record says how, and the other peers remain
            except Exception as error:
                missing[name] = reason(error)
            else:
                sides.append(side)
    return sides, missing


def _peer(
    transformers: Any,
    config: EncoderConfig,
    batch: Batch,
    device: str,
    name: str,
    attention: str,
    is_compiled: bool,
    cast: str,
) -> Side:
    torch.manual_seed(0)
    ours = BertForMaskedLM(config)
    shape = transformers.BertConfig(**config.to_dict())
    shape._attn_implementation = attention
    model = transformers.BertForMaskedLM(shape)
    names = {name for name, _ in model.named_parameters()}
    model.load_state_dict(
        {name: value for name, value in ours.state_dict().items() if name in names}, strict=False
    )
    model = model.to(
        device, torch.bfloat16 if cast == "bfloat16 weights" else torch.float32
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    forward = torch.compile(model) if is_compiled else model
    padded = dict(batch.padded)
    if bool(padded["attention_mask"].all()):
        del padded["attention_mask"]  # a user whose batch is full gives none

    def differentiate() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=cast == "autocast"):
            loss = forward(**padded).loss
        loss.backward()
        return loss

    def step() -> float:
        start = time.perf_counter()
        differentiate()
        synchronize(device)
        part = time.perf_counter() - start
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return part

    differentiate()  # compiles, or fails, now
    _clear(model.parameters())
    # The compiled model's parameters are the plain one's: it is compared without compiling it a
    # second time for evaluation.
    return Side(name, "peer", step, None if is_compiled else _probe(model, differentiate, config))


def _probe(
    model: nn.Module, differentiate: Callable[[], Tensor], config: EncoderConfig
) -> Callable[[], tuple[Tensor, ...]]:
    """Loss and gradients without dropout."""
    names = [name.format(last=config.num_hidden_layers - 1) for name in COMPARED]

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
