"""The packed batch: a flat run of tokens with sequence boundaries, and the way to it from the padded form and back.

Dimensions: ``tokens`` over the whole batch, ``sequences``, ``masked`` positions to predict. ``tokens`` and ``masked`` may be padded to a fixed
budget: slack tokens stand past ``cu_seqlens[-1]``, slack positions are -1 with the label -100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .errors import BertfastError

IGNORE_INDEX = -100


@dataclass
class PackedBatch:
    """Sequences one after another, with no padding between them.

    Attributes:
        input_ids: (tokens,) int64.
        segment_ids: (tokens,) int64.
        position_ids: (tokens,) int64, each token's position in its sequence.
        cu_seqlens: (sequences + 1,) int32; sequence b is tokens ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.
        max_seqlen: at least the longest sequence's length.
        masked_positions: (masked,) int64 rows of the tokens to predict, no two alike, -1 for slack.
        masked_labels: (masked,) int64 ids to predict there, -100 for slack.
        next_sentence_labels: (sequences,) int64, 0 where the second segment follows the first, 1 where it is random.
        labels: (sequences,) class ids (int64) or targets (float).
    """

    input_ids: Tensor
    segment_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    masked_positions: Tensor | None = None
    masked_labels: Tensor | None = None
    next_sentence_labels: Tensor | None = None
    labels: Tensor | None = None

    def check(self) -> None:
        """Raises BertfastError unless the fields' shapes fit one another; values are the ops' to check."""
        for name in ("segment_ids", "position_ids"):
            shape = tuple(getattr(self, name).shape)
            if shape != (self.num_tokens,) or self.input_ids.dim() != 1:
                raise BertfastError(
                    f"{name} has shape {shape} and input_ids {tuple(self.input_ids.shape)}; both must be (tokens,)"
                )
        if (self.masked_positions is None) != (self.masked_labels is None):
            raise BertfastError("masked_positions and masked_labels go together; one is None")
        for name in ("next_sentence_labels", "labels"):
            labels = getattr(self, name)
            if labels is not None and labels.shape[:1] != (self.num_sequences,):
                raise BertfastError(
                    f"{name} has shape {tuple(labels.shape)} and there are {self.num_sequences} sequences; "
                    "it must have an entry for each"
                )

    @property
    def num_tokens(self) -> int:
        """How many tokens there are, slack included."""
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        """How many sequences there are."""
        return self.cu_seqlens.shape[0] - 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """This batch with every tensor on ``device``."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in tensors.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

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
            raise BertfastError(f"there are {len(labels)} labels and {len(lengths)} sequences; they must be the same")
        flat = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
        return cls(
            input_ids=flat,
            segment_ids=torch.zeros_like(flat)
            if segments is None
            else torch.tensor([segment for sequence in segments for segment in sequence], dtype=torch.int64),
            position_ids=torch.tensor(
                [position for length in lengths for position in range(length)], dtype=torch.int64
            ),
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32),
            max_seqlen=max(lengths, default=0),
            labels=None if labels is None else torch.tensor(labels),
        )


class Padding:
    """Where the tokens of a padded (sequences, positions) batch are, from its attention mask.

    Any pattern of the mask is taken: right or left padding, holes, whole sequences masked out.

    Args:
        shape: (sequences, positions).
        mask: (sequences, positions), nonzero where a token is real; None when all are.
        device: of the batch.

    Raises:
        BertfastError: a mask of another shape.
    """

    def __init__(self, shape: tuple[int, int], mask: Tensor | None, device: torch.device) -> None:
        self.shape = shape
        sequences, positions = shape
        self.rows: Tensor | None = None  # of the real tokens in the flattened batch; None: all of them
        if mask is None:
            self.cu_seqlens = torch.arange(sequences + 1, dtype=torch.int32, device=device) * positions
            self.max_seqlen = positions
            return
        if tuple(mask.shape) != shape:
            raise BertfastError(
                f"attention_mask has shape {tuple(mask.shape)} and the input {shape}; it must be (sequences, positions), "
                "one entry a token: masks between pairs of tokens are not supported"
            )
        real = mask.to(device) != 0
        self.rows = real.flatten().nonzero().squeeze(1)
        lengths = real.sum(1, dtype=torch.int32)
        self.cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        self.max_seqlen = int(lengths.max()) if sequences else 0

    def pack(self, padded: Tensor) -> Tensor:
        """(sequences, positions, ...) to (tokens, ...): the real tokens alone."""
        return padded.flatten(0, 1) if self.rows is None else kernels.pack(padded, self.rows)

    def unpack(self, packed: Tensor) -> Tensor:
        """(tokens, ...) to (sequences, positions, ...), zeros where there is no real token."""
        return packed.unflatten(0, self.shape) if self.rows is None else kernels.unpack(packed, self.rows, self.shape)
