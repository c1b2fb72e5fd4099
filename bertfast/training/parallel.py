"""An update's batches over several ranks: each computes whole ones, and the gradients are summed
while the backward still runs.

A batch is the same, and so are its dropouts, whichever rank computes it. So an update does not
depend on how many ranks there are, but for the order in which float32 numbers are added.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bertfast.errors import BertfastError
from bertfast.packed import IGNORE_INDEX, PackedBatch
from bertfast.ranks import Ranks

from .metrics import numbers
from .precision import Masters

REDUCTIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
UNITS = ("masked", "sequences", "tokens", "labelled")  # what a loss can be a mean over


def share_batches(accumulation: int, ranks: Ranks) -> int:
    """How many of an update's batches each rank computes.

    Raises:
        BertfastError: they cannot be shared out.
    """
    if accumulation % ranks.size:
        least = -(-accumulation // ranks.size) * ranks.size
        raise BertfastError(
            f"accumulation is {accumulation}, the batches of an update, and there are {ranks.size} "
            f"ranks, which compute whole batches. Take --accumulation {least} or another multiple "
            f"of {ranks.size}, or other ranks"
        )
    return accumulation // ranks.size


def every(batches: Any, start: int, stride: int) -> Iterator[tuple[int, PackedBatch]]:
    """(epoch, batch) of number ``start`` and every ``stride``-th after it."""
    if stride == 1:
        return iter(batches.iterate(start))
    if "stride" in inspect.signature(batches.iterate).parameters:
        return iter(batches.iterate(start, stride=stride))
    return islice(batches.iterate(start), 0, None, stride)


class Parallel:
    """The model as an update steps it, on one rank or on many.

    Args:
        model: called with a batch and a seed. Its ``counted``, if it has one, says what each of its
            losses ``X_loss`` is a mean over, by X: one of `UNITS`. Masked words' loss, ``mlm``, is
            over the masked, and others are over sequences.
        masters: of the model.
        ranks: that share the batches.
        reduction: "fp32" or "bf16", in which gradients travel between ranks.

    Raises:
        BertfastError: there is no such reduction.
    """

    def __init__(
        self, model: nn.Module, masters: Masters, ranks: Ranks, reduction: str = "fp32"
    ) -> None:
        if reduction not in REDUCTIONS:
            raise BertfastError(
                f"reduction is {reduction!r}; it must be one of {', '.join(REDUCTIONS)}"
            )
        self.model, self.masters, self.ranks = model, masters, ranks
        self.counted = {"mlm": "masked", **getattr(model, "counted", {})}
        self.wire = REDUCTIONS[reduction]
        # With several ranks DDP, which is made where the first batch is at hand.
        self.whole: nn.Module | None = model if ranks.size == 1 else None

    def weights(
        self, parts: list[PackedBatch], accumulation: int
    ) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """For each of this rank's batches, the weight of each unit.

        With these weights the mean over the update's batches of their means is one mean over all
        that they count.

        Returns:
            They, and with several ranks how far the heaviest is above their mean: (2,), of tokens
            and of squares of lengths.
        """
        if accumulation == 1:
            return [{} for _ in parts], None
        device = next(self.model.parameters()).device
        counts = torch.tensor([_counts(part) for part in parts], dtype=torch.float64).to(device)
        total, uneven = counts.sum(0), None
        if self.ranks.size > 1:
            loads = [torch.empty_like(total) for _ in range(self.ranks.size)]
            dist.all_gather(loads, total)
            each = torch.stack(loads)
            total = each.sum(0)
            heaviest = each.amax(0) * self.ranks.size / total.clamp(min=1) - 1
            uneven = heaviest[[UNITS.index("tokens"), len(UNITS)]]
        shares = (counts * accumulation / total.clamp(min=1)).float()
        return [dict(zip(UNITS, row.unbind(), strict=False)) for row in shares], uneven

    def backward(
        self,
        batch: PackedBatch,
        seed: int,
        weights: dict[str, Tensor],
        accumulation: int,
        last: bool,
    ) -> dict[str, Any]:
        """The numbers of a batch's output, its losses weighted, whose gradients are added to what
        is there.

        With the last batch, those of all ranks are summed.
        """
        if self.whole is None:
            self.whole = self._distributed(batch, seed)
        waits = self.ranks.size > 1 and not last
        with self.whole.no_sync() if waits else nullcontext():  # type: ignore[operator]
            output = self.whole(batch, seed=seed)
            found = self._weighted(output, batch, weights)
            (found["loss"] / accumulation).backward()
        if self.ranks.size > 1 and last:
            for master, parameter in self.masters.lower.items():
                if parameter.grad is None:  # no rank's model used it
                    master.grad = None
                parameter.grad = None
        return found

    def total(self, values: Tensor) -> Tensor:
        """Their sums over the ranks, in place."""
        if self.ranks.size > 1:
            dist.all_reduce(values)
        return values

    def _distributed(self, batch: PackedBatch, seed: int) -> nn.Module:
        """The model in DDP, which must know if a batch leaves some parameters without gradients."""
        trained = {p for p in self.model.parameters() if p.requires_grad}
        used = _leaves(self.model(batch, seed=seed)["loss"]) if batch.num_sequences else set()
        whole = DistributedDataParallel(
            _OrNothing(self.model),
            find_unused_parameters=not trained <= used,
        )
        whole.register_comm_hook(None, lambda _, bucket: self._reduce(bucket))
        return whole

    def _weighted(
        self, output: Any, batch: PackedBatch, weights: dict[str, Tensor]
    ) -> dict[str, Any]:
        """The numbers of an output, each loss times its weight."""
        found = {name: value for name, value in numbers(output).items() if value is not None}
        if not weights or not batch.num_sequences:
            return found
        tasks = [name for name in found if name.endswith("_loss")]
        weight = {name: weights[self._unit(name, found, batch)] for name in tasks or ["loss"]}
        loss, common = found["loss"], next(iter(weight.values()))
        whole = loss * common
        if len({self._unit(name, found, batch) for name in weight}) > 1:
            # The loss is a sum of the tasks', each times a factor of the objective's.
            parts = {name: found[name] for name in tasks if found[name].requires_grad}
            factors = torch.autograd.grad(
                loss, list(parts.values()), retain_graph=True, allow_unused=True
            )
            for (name, part), factor in zip(parts.items(), factors, strict=True):
                if factor is not None:
                    whole = whole + factor * part * (weight[name] - common)
        return found | {name: found[name] * weight[name] for name in tasks} | {"loss": whole}

    def _unit(self, name: str, found: dict[str, Any], batch: PackedBatch) -> str:
        """What a loss is a mean over."""
        if name != "loss":
            return self.counted.get(name.removesuffix("_loss"), "sequences")
        tasks = [other.removesuffix("_count") for other in found if other.endswith("_count")]
        if len(tasks) == 1:
            return self.counted.get(tasks[0], "sequences")
        return "sequences" if batch.token_labels is None else "labelled"

    def _reduce(self, bucket: dist.GradBucket) -> Any:
        """Sums a bucket of gradients over the ranks. Those that the model computes in bfloat16 go
        to the masters, with what earlier batches left there.
        """
        own, lower = bucket.buffer(), self.masters.lower
        buffer = own
        if lower:
            buffer = own.float()
            at = 0
            for parameter in bucket.parameters():
                master = self.masters.by_parameter[parameter]
                part = buffer[at : at + parameter.numel()].view_as(parameter)
                if master.grad is not None:
                    part += master.grad
                master.grad = part
                at += parameter.numel()
        sent = buffer if buffer.dtype == self.wire else buffer.to(self.wire)
        future = dist.all_reduce(sent, async_op=True).get_future()

        def received(done: Any) -> Tensor:
            summed = done.value()[0]
            if summed.data_ptr() != buffer.data_ptr():
                buffer.copy_(summed)
            return own

        return future.then(received)


class _OrNothing(nn.Module):
    """The model; of a batch without sequences the loss is 0, so that its rank is there when
    gradients are summed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch, *, seed: int) -> Any:
        if batch.num_sequences:
            return self.model(batch, seed=seed)
        return {"loss": sum(p.flatten()[:1].sum() * 0 for p in self.model.parameters())}


def _counts(batch: PackedBatch) -> list[int]:
    """How many of each of `UNITS` a batch has, slack not counted, and the sum of its sequences'
    squared lengths.
    """
    masked = 0 if batch.masked_labels is None else int((batch.masked_labels >= 0).sum())
    sequences = batch.num_sequences if batch.labels is None else len(batch.labels)
    labels = batch.token_labels
    labelled = 0 if labels is None else int((labels != IGNORE_INDEX).sum())
    lengths = batch.cu_seqlens.diff().long()
    return [masked, sequences, int(lengths.sum()), labelled, int(lengths.square().sum())]


def _leaves(loss: Tensor) -> set[Tensor]:
    """The parameters that a loss's gradients reach."""
    found: set[Tensor] = set()
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [other for other, _ in node.next_functions]
    return found
