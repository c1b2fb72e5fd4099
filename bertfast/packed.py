"""The packed batch: a flat run of tokens with sequence boundaries, and the way to it from the
padded form and back.

Dimensions: ``tokens`` over the whole batch, ``sequences``, ``masked`` positions to predict. Each
may be padded to a fixed budget. Slack tokens stand past ``cu_seqlens[-1]``, slack sequences are
empty and the last, and slack positions are -1 with the label -100.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .errors import BertfastError

IGNORE_INDEX = -100
EXTRAS = ("per_token", "per_sequence", "per_masked")  # of a PackedBatch, in the order of its sizes


class Budget(NamedTuple):
    """The sizes of a batch; what `PackedBatch.pad_to` makes them."""

    tokens: int
    sequences: int
    masked: int
    max_seqlen: int

    def rounded(self) -> Budget:
        """Up to the next sizes of a grid as coarse as a thirty-second of them, so that a run's
        batches have few shapes.

        On a CPU the library of matrix products prepares each shape anew. It keeps what it prepared
        for about a thousand of them: gigabytes, where no two batches are of a size.
        """
        return Budget(
            grid_size(self.tokens),
            grid_size(self.sequences),
            grid_size(self.masked),
            self.max_seqlen,
        )


def grid_size(size: int) -> int:
    """The next size of the grid of `Budget.rounded`."""
    step = max(8, 1 << max(size.bit_length() - 6, 0))
    return -(-size // step) * step


def runs_of_tokens(
    lengths: Iterable[int], tokens: int, sequences: int | None = None
) -> Iterator[slice]:
    """Cuts sequences, in their order, into batches of at most ``tokens`` tokens and ``sequences``
    sequences, one sequence at least.
    """
    start = end = total = 0
    for length in lengths:
        if end > start and (total + length > tokens or end - start == sequences):
            yield slice(start, end)
            start, total = end, 0
        total += length
        end += 1
    if end > start:
        yield slice(start, end)


@dataclass
class PackedBatch:
    """Sequences one after another, with no padding between them.

    Attributes:
        input_ids: (tokens,) int64.
        segment_ids: (tokens,) int64.
        position_ids: (tokens,) int64, each token's position in its sequence.
        cu_seqlens: (sequences + 1,) int32; sequence b is tokens ``cu_seqlens[b]`` to ``cu_seqlens[b
            + 1]``.
        max_seqlen: at least the longest sequence's length.
        masked_positions: (masked,) int64 rows of the tokens to predict, no two alike, -1 for slack.
        masked_labels: (masked,) int64 ids to predict there, -100 for slack.
        pair_labels: (sequences,) int64, of next-sentence or of sentence-order prediction. It is 0
            where the second segment follows the first, 1 where it is random, or where the two are
            swapped.
        labels: (sequences,) class ids (int64) or targets (float).
        token_labels: (tokens,) int64 class ids, -100 where there is none.
        start_positions: (sequences,) int64, the answer's first token in its sequence; one outside
            it counts for nothing.
        end_positions: likewise its last token.
        per_token: tensors (tokens, ...) of an objective's own, by name.
        per_sequence: likewise (sequences, ...).
        per_masked: likewise (masked, ...), with `masked_positions` alone. Slack in all three is
            -100 in signed integers, False in booleans and 0 in other numbers.
    """

    input_ids: Tensor
    segment_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    masked_positions: Tensor | None = None
    masked_labels: Tensor | None = None
    pair_labels: Tensor | None = None
    labels: Tensor | None = None
    token_labels: Tensor | None = None
    start_positions: Tensor | None = None
    end_positions: Tensor | None = None
    per_token: dict[str, Tensor] = field(default_factory=dict)
    per_sequence: dict[str, Tensor] = field(default_factory=dict)
    per_masked: dict[str, Tensor] = field(default_factory=dict)

    def check(self) -> None:
        """Raises BertfastError unless the fields' shapes fit one another; values are the ops' to
        check.
        """
        for name in ("segment_ids", "position_ids", "token_labels"):
            ids = getattr(self, name)
            shape = (self.num_tokens,) if ids is None else tuple(ids.shape)
            if shape != (self.num_tokens,) or self.input_ids.dim() != 1:
                raise BertfastError(
                    f"{name} has shape {shape} and input_ids {tuple(self.input_ids.shape)}; "
                    "both must be (tokens,)"
                )
        if (self.masked_positions is None) != (self.masked_labels is None):
            raise BertfastError("masked_positions and masked_labels go together; one is None")
        for name in ("pair_labels", "labels", "start_positions", "end_positions"):
            labels = getattr(self, name)
            if labels is not None and labels.shape[:1] != (self.num_sequences,):
                raise BertfastError(
                    f"{name} has shape {tuple(labels.shape)} and there are {self.num_sequences} "
                    "sequences; it must have an entry for each"
                )
        for group, size in zip(EXTRAS, self.sizes, strict=False):
            for name, x in getattr(self, group).items():
                if x.shape[:1] != (size,):
                    raise BertfastError(
                        f"{group}[{name!r}] has shape {tuple(x.shape)}; "
                        f"its first size must be {size}"
                    )

    @property
    def num_tokens(self) -> int:
        """How many tokens there are, slack included."""
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        """How many sequences there are."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def sizes(self) -> Budget:
        """The least budget that this batch fits."""
        masked = 0 if self.masked_positions is None else self.masked_positions.shape[0]
        return Budget(self.num_tokens, self.num_sequences, masked, self.max_seqlen)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by field; those of an objective's own as ``FIELD.NAME``."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        own = {f"{group}.{name}": x for group in EXTRAS for name, x in getattr(self, group).items()}
        return {name: x for name, x in (found | own).items() if isinstance(x, Tensor)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> PackedBatch:
        """This batch with other tensors under the names of `tensors`."""
        changed: dict[str, Any] = {group: dict(getattr(self, group)) for group in EXTRAS}
        for name, x in tensors.items():
            group, _, own = name.partition(".")
            if own:
                changed[group][own] = x
            else:
                changed[name] = x
        return replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """This batch with every tensor on ``device``."""
        return self.with_tensors(
            {name: x.to(device, non_blocking=non_blocking) for name, x in self.tensors().items()}
        )

    def pin_memory(self) -> PackedBatch:
        """This batch in page-locked memory, from which a GPU copies without blocking."""
        return self.with_tensors({name: x.pin_memory() for name, x in self.tensors().items()})

    def on_grid(self) -> PackedBatch:
        """This batch with slack up to the grid of `Budget.rounded`, on a CPU; on a GPU as it is.

        Sequences with float labels get no slack of their own: a loss would count it.
        """
        if self.input_ids.device.type != "cpu":
            return self
        tokens, sequences, masked, longest = self.sizes.rounded()
        if self.labels is not None and self.labels.is_floating_point():
            sequences = self.num_sequences
        return self.pad_to(tokens, sequences, masked, longest)

    def fits(self, budget: Budget) -> bool:
        """Whether `pad_to` can make this batch's sizes those."""
        return all(have <= most for have, most in zip(self.sizes, budget, strict=True))

    def pad_to(self, tokens: int, sequences: int, masked: int, max_seqlen: int) -> PackedBatch:
        """This batch with slack up to these sizes, so that all batches of a run have one shape.

        Losses, counts and gradients stay what they are.

        Slack labels of sequences are -100. No value is read, so that a GPU's queue is not stalled.

        Raises:
            BertfastError: the batch is larger already, or its labels are float, of which a loss
                would count every sequence.
        """
        budget = Budget(tokens, sequences, masked, max_seqlen)
        if not self.fits(budget):
            over = [
                f"{name} is {have} and the budget {most}"
                for name, have, most in zip(Budget._fields, self.sizes, budget, strict=True)
                if have > most
            ]
            raise BertfastError(
                f"the batch exceeds its budget: {', '.join(over)}; raise it, "
                "or make smaller batches"
            )
        slack = [most - have for have, most in zip(self.sizes, budget, strict=True)]
        if slack[1] and self.labels is not None and self.labels.is_floating_point():
            raise BertfastError(
                f"labels are {self.labels.dtype}, and a loss of theirs ignores no slack sequence; "
                "pad the tokens alone"
            )
        filled = {
            **dict.fromkeys(("input_ids", "segment_ids", "position_ids"), (slack[0], 0)),
            **dict.fromkeys(
                ("pair_labels", "labels", "start_positions", "end_positions"),
                (slack[1], IGNORE_INDEX),
            ),
            "token_labels": (slack[0], IGNORE_INDEX),
            "masked_positions": (slack[2], -1),
            "masked_labels": (slack[2], IGNORE_INDEX),
        }
        padded = {
            name: F.pad(x, (0, filled[name][0]), value=filled[name][1])
            for name, x in self.tensors().items()
            if name in filled
        }
        for group, more in zip(EXTRAS, slack, strict=False):
            for name, x in getattr(self, group).items():
                signed = not x.is_floating_point() and x.dtype not in (torch.bool, torch.uint8)
                padded[f"{group}.{name}"] = torch.cat(
                    [x, x.new_full((more, *x.shape[1:]), IGNORE_INDEX if signed else 0)]
                )
        ends = self.cu_seqlens[-1:].expand(slack[1])
        padded["cu_seqlens"] = torch.cat([self.cu_seqlens, ends])
        return replace(self.with_tensors(padded), max_seqlen=max_seqlen)

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int]],
        segments: Sequence[Sequence[int]] | None = None,
        labels: Sequence[int] | Sequence[float] | None = None,
    ) -> PackedBatch:
        """A batch of these token ids, all of segment 0 unless ``segments`` says otherwise.

        Raises:
            BertfastError: segments or labels that do not fit the sequences.
        """
        lengths = [len(sequence) for sequence in sequences]
        if segments is not None and [len(segment) for segment in segments] != lengths:
            raise BertfastError("segments must have the lengths of the sequences")
        if labels is not None and len(labels) != len(lengths):
            raise BertfastError(
                f"there are {len(labels)} labels and {len(lengths)} sequences; "
                "they must be the same"
            )
        flat = torch.tensor(
            [token for sequence in sequences for token in sequence], dtype=torch.int64
        )
        return cls(
            input_ids=flat,
            segment_ids=torch.zeros_like(flat)
            if segments is None
            else torch.tensor(
                [segment for sequence in segments for segment in sequence], dtype=torch.int64
            ),
            position_ids=torch.tensor(
                [position for length in lengths for position in range(length)], dtype=torch.int64
            ),
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32),
            max_seqlen=max(lengths, default=0),
            labels=None if labels is None else torch.tensor(labels),
        )


def padded_rows(cu_seqlens: Tensor, tokens: int, width: int) -> Tensor:
    """(tokens,) int64, where each token of a packed batch stands in the flattened (sequences,
    width) form; -1 for slack.
    """
    token = torch.arange(tokens, device=cu_seqlens.device)
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    if len(ends) == 0:
        return torch.full_like(token, -1)
    sequence = torch.searchsorted(ends, token, right=True).clamp(max=len(ends) - 1)
    return torch.where(token < ends[-1], sequence * width + token - starts[sequence], -1)


class Padding:
    """Where the tokens of a padded (sequences, positions) batch are, from its attention mask.

    Any pattern of the mask is taken: right or left padding, holes, whole sequences masked out.

    Args:
        shape: (sequences, positions).
        mask: (sequences, positions), nonzero where a token is real; None when all are.
        device: of the batch.
        slack: follow the tokens by slack, as `Budget.rounded` has it.

    Raises:
        BertfastError: a mask of another shape.
    """

    def __init__(
        self, shape: tuple[int, int], mask: Tensor | None, device: torch.device, slack: bool = False
    ) -> None:
        self.shape = shape
        sequences, positions = shape
        self.rows: Tensor | None = (
            None  # of the real tokens in the flattened batch, -1 for slack; None: all of them
        )
        if mask is None:
            self.cu_seqlens = (
                torch.arange(sequences + 1, dtype=torch.int32, device=device) * positions
            )
            self.max_seqlen = positions
            return
        if tuple(mask.shape) != shape:
            raise BertfastError(
                f"attention_mask has shape {tuple(mask.shape)} and the input {shape}; "
                "it must be (sequences, positions), one entry a token: "
                "masks between pairs of tokens are not supported"
            )
        real = mask.to(device) != 0
        rows = real.flatten().nonzero().squeeze(1)
        self.rows = F.pad(rows, (0, grid_size(len(rows)) - len(rows)), value=-1) if slack else rows
        lengths = real.sum(1, dtype=torch.int32)
        self.cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        self.max_seqlen = int(lengths.max()) if sequences else 0

    @property
    def columns(self) -> Tensor | None:
        """(tokens,) where each token stands in its row, if the mask leaves out tokens between
        others; None if it does not.
        """
        if self.rows is None or len(self.rows) == 0:
            return None
        same_row = (self.rows // self.shape[1]).diff() == 0
        if not bool((same_row & (self.rows.diff() != 1)).any()):
            return None
        return self.rows % self.shape[1]

    def pack(self, padded: Tensor) -> Tensor:
        """(sequences, positions, ...) to (tokens, ...): the real tokens alone, and zeros for
        slack.
        """
        return padded.flatten(0, 1) if self.rows is None else kernels.pack(padded, self.rows)

    def unpack(self, packed: Tensor) -> Tensor:
        """(tokens, ...) to (sequences, positions, ...), zeros where there is no real token."""
        return (
            packed.unflatten(0, self.shape)
            if self.rows is None
            else kernels.unpack(packed, self.rows, self.shape)
        )
