"""Relative positions in the scores of `attention`: a bucket for each distance i - j of a query and
a key, and tables over the buckets.

These alone tell three methods apart: ALiBi, T5's bias and DeBERTa's disentangled terms.

Sources: Press et al., "Train Short, Test Long", 2022; Raffel et al., "Exploring the Limits of
Transfer Learning with a Unified Text-to-Text Transformer", section 2.1; He et al., "DeBERTa",
section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_device, check_integers, check_like, check_tensor


@dataclass(frozen=True)
class RelativePositions:
    """What `attention` adds to the score of query i and key j (positions in their sequence).

    With ``b = buckets[i - j + max_seqlen - 1]`` it is ``bias[head, b] + query_scores[i, head, b] +
    key_scores[j, head, b]``. A table that is None adds nothing; each that is given gets its
    gradient.

    The tables have q's dtype. DeBERTa's are products that the caller makes, already scaled: of q
    with the positions' keys, and of k with the positions' queries. Autograd takes their gradients
    on to both factors.

    Attributes:
        buckets: (2 * max_seqlen - 1,) int32, each in [0, buckets of the tables).
        bias: (heads, buckets).
        query_scores: (tokens, heads, buckets): content to position. Rows of slack tokens are not
            read.
        key_scores: (tokens, heads, buckets): position to content, likewise.
    """

    buckets: Tensor
    bias: Tensor | None = None
    query_scores: Tensor | None = None
    key_scores: Tensor | None = None

    @property
    def tables(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """bias, query_scores and key_scores."""
        return self.bias, self.query_scores, self.key_scores


def check_positions(positions: RelativePositions, q: Tensor, max_seqlen: int) -> None:
    """Raises TypeError or ValueError unless ``positions`` fit ``q`` and ``max_seqlen``; the
    buckets' values are read on the CPU alone.
    """
    if not isinstance(positions, RelativePositions):
        raise TypeError(f"positions is a {type(positions).__name__}; it must be RelativePositions")
    buckets, (tokens, heads) = positions.buckets, q.shape[:2]
    check_integers("positions.buckets", buckets, ("2 * max_seqlen - 1",), torch.int32)
    check_device("positions.buckets", buckets, "q", q)
    distances = max(2 * max_seqlen - 1, 0)
    if buckets.shape[0] != distances:
        raise ValueError(
            f"positions.buckets holds {buckets.shape[0]} distances; max_seqlen {max_seqlen} has "
            f"{distances}, from {1 - max_seqlen} to {max_seqlen - 1}"
        )
    counts = {}
    shapes = (
        ("bias", (heads,)),
        ("query_scores", (tokens, heads)),
        ("key_scores", (tokens, heads)),
    )
    for (field, wanted), table in zip(shapes, positions.tables, strict=True):
        if table is None:
            continue
        name = f"positions.{field}"
        check_tensor(name, table, ("tokens", "heads", "buckets")[-len(wanted) - 1 :])
        check_like(name, table, "q", q)
        if table.shape[:-1] != wanted:
            raise ValueError(
                f"{name} has shape {tuple(table.shape)}; for q {tuple(q.shape)} it must be "
                f"{(*wanted, 'buckets')}"
            )
        counts[name] = table.shape[-1]
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"the tables differ in buckets ({counts}); they share positions.buckets, "
            "so they must not"
        )
    if counts and distances and not torch.compiler.is_compiling() and buckets.device.type == "cpu":
        low, high, count = int(buckets.min()), int(buckets.max()), next(iter(counts.values()))
        if low < 0 or high >= count:
            raise ValueError(
                f"positions.buckets goes from {low} to {high} and the tables have {count} "
                f"buckets; it must be from 0 to {count - 1}"
            )


def _distances(max_seqlen: int) -> Tensor:
    """(2 * max_seqlen - 1,) int64: i - j of each place in `RelativePositions.buckets`."""
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen is {max_seqlen}; it must be at least 0")
    return torch.arange(1 - max_seqlen, max(max_seqlen, 1 - max_seqlen))


def alibi(slopes: Tensor, max_seqlen: int) -> RelativePositions:
    """ALiBi for both directions: ``-slope * |i - j|`` on the scores of each head, the distance
    being the bucket.

    Args:
        slopes: (heads,) of q's dtype, such as `alibi_slopes`; a gradient flows to them.
        max_seqlen: as given to `attention`.
    """
    check_tensor("slopes", slopes, ("heads",))
    wide = torch.promote_types(slopes.dtype, torch.float32)
    bias = -slopes.to(wide)[:, None] * torch.arange(max_seqlen, device=slopes.device)
    return RelativePositions(
        _distances(max_seqlen).abs().int().to(slopes.device), bias.to(slopes.dtype)
    )


def alibi_slopes(heads: int) -> Tensor:
    """The paper's slopes, (heads,) float32: 2^(-8 h / heads) for h = 1 ... heads, where heads is a
    power of two.

    Else they are those of the power below, and then every other one of the power above.
    """
    if heads < 1:
        raise ValueError(f"heads is {heads}; it must be at least 1")
    power = 1 << (heads.bit_length() - 1)
    exponents = [8 * h / power for h in range(1, power + 1)] + [
        4 * h / power for h in range(1, 2 * power, 2)
    ]
    return torch.tensor([2**-exponent for exponent in exponents[:heads]])


def t5_buckets(max_seqlen: int, num_buckets: int = 32, max_distance: int = 128) -> Tensor:
    """T5's buckets for both directions, `RelativePositions.buckets` of a ``(heads, num_buckets)``
    bias.

    Half of the buckets are for keys after the query. Of each half, half are single distances, and
    half widen with the logarithm up to ``max_distance``. Everything beyond falls into the last.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"num_buckets is {num_buckets} and max_distance {max_distance}; "
            "they must be at least 4, and above num_buckets // 4"
        )
    distance = _distances(max_seqlen)
    size = distance.abs()
    # In float32 and in this order, as T5 was trained: the boundaries fall where it rounds.
    grown = (
        (size.clamp(min=exact).float() / exact).log()
        / math.log(max_distance / exact)
        * (half - exact)
    )
    far = (exact + grown.long()).clamp(max=half - 1)
    return (torch.where(size < exact, size, far) + half * (distance < 0)).int()


def deberta_buckets(max_seqlen: int, position_buckets: int, max_position: int) -> Tensor:
    """DeBERTa's buckets, one index into ``2 * span`` relative embeddings for content-to-position
    and position-to-content alike.

    Args:
        max_seqlen: as given to `attention`.
        position_buckets: the span, as in DeBERTa v2 and v3: distances up to half of it count
            singly, from there their logarithm does, up to ``max_position``. At 0 or below, as in
            DeBERTa v1, every distance counts singly and the span is ``max_position``.
        max_position: the configuration's max_relative_positions, or, where that is below 1, its
            max_position_embeddings.
    """
    distance, span = _distances(max_seqlen), max_position
    if position_buckets > 0:
        span, middle = position_buckets, position_buckets // 2
        if middle < 1 or max_position <= middle + 1:
            raise ValueError(
                f"position_buckets is {position_buckets} and max_position {max_position}; "
                "they must be at least 2, and above position_buckets // 2 + 1"
            )
        # In float32 and in this order, as DeBERTa was trained: the boundaries fall where it rounds.
        ratio = (distance.abs().clamp(min=middle).float() / middle).log() / torch.tensor(
            (max_position - 1) / middle
        ).log()
        far = (middle + (ratio * (middle - 1)).ceil()).long() * distance.sign()
        distance = torch.where(distance.abs() <= middle, distance, far)
    elif max_position < 1:
        raise ValueError(f"max_position is {max_position}; it must be at least 1")
    return (distance + span).clamp(0, 2 * span - 1).int()
