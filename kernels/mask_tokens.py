"""Masked-token selection: which tokens are to be predicted, and what stands in their place.

input_ids (tokens,) int64, special (tokens,) bool. Token t takes the words w0, w1, w2 of its Philox
counter (`philox.py`):

- it is chosen where w0 / 2^32 < rate and it is not special. All tokens of a whole word share the w0
of the word's first token;
- a chosen one becomes [MASK] where w1 / 2^32 < mask_share, a random id where it is below mask_share
+ random_share, and else stays;
- the random id is ``first_random_id + w2 * (vocab_size - first_random_id) / 2^32``, rounded down.

The shares are rounded to multiples of 2^-32 on the host and the words compared as integers, so
every backend gives the same ids. With nothing but a seed from step to step, masking is dynamic at
no cost to the loader, and a resumed run repeats it.

Sources: Devlin et al., "BERT", section 3.1; Liu et al., "RoBERTa", section 4.1 (dynamic masking);
whole words: the BERT repository's README, 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import (
    Wanted,
    check_cu_seqlens,
    check_device,
    check_dropout,
    check_integers,
    check_launch,
    check_range,
    register_fake,
)
from .launch import launch
from .philox import as_seed
from .threads import num_threads
from .triton_compat import tl, triton

WORD_RANGE = 1 << 32

# --- Triton ---

BLOCK = 256  # tokens of a program


@triton.jit
def _token_words(seed, counters):
    low = (counters & 0xFFFFFFFF).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, (counters >> 32).to(tl.uint32), zero, zero + 1)


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
def _mask_kernel(
    ids_ptr,
    special_ptr,
    counters_ptr,
    choices_ptr,
    seed_ptr,
    masked_ptr,
    labels_ptr,
    tokens,
    mask_id,
    first_random_id,
    random_ids,
    choose_below,
    mask_below,
    random_below,
    ignore_index,
    HAS_COUNTERS: tl.constexpr,
    HAS_CHOICES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < tokens
    seed = tl.load(seed_ptr)
    own = index
    if HAS_COUNTERS:
        own = tl.load(counters_ptr + index, inside, 0)
    choice, action, draw, _ = _token_words(seed, own)
    if HAS_CHOICES:
        choice, _1, _2, _3 = _token_words(seed, tl.load(choices_ptr + index, inside, 0))
    ids = tl.load(ids_ptr + index, inside, 0)
    special = tl.load(special_ptr + index, inside, 1)
    # The bounds reach 2^32, one more than a word: both sides are compared as 64 bits.
    chosen = (choice.to(tl.int64) < choose_below) & (special == 0)
    other = first_random_id + (draw.to(tl.int64) * random_ids >> 32)
    action = action.to(tl.int64)
    hidden = tl.where(action < mask_below, mask_id, tl.where(action < random_below, other, ids))
    tl.store(masked_ptr + index, tl.where(chosen, hidden, ids), inside)
    tl.store(labels_ptr + index, tl.where(chosen, ids, ignore_index), inside)


# --- torch.library ---


@torch.library.custom_op("bertfast::mask_tokens", mutates_args=())
def _mask_tokens(
    input_ids: Tensor,
    special: Tensor,
    counters: Tensor | None,
    choices: Tensor | None,
    seed: Tensor,
    mask_id: int,
    first_random_id: int,
    random_ids: int,
    choose_below: int,
    mask_below: int,
    random_below: int,
    ignore_index: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    input_ids, special = input_ids.contiguous(), special.contiguous().view(torch.uint8)
    counters, choices = (None if x is None else x.contiguous() for x in (counters, choices))
    masked, labels = torch.empty_like(input_ids), torch.empty_like(input_ids)
    tokens = input_ids.shape[0]
    settings = (
        tokens,
        mask_id,
        first_random_id,
        random_ids,
        choose_below,
        mask_below,
        random_below,
        ignore_index,
    )
    if backend == "cpp":
        dispatch._C.mask_tokens(
            ids=input_ids,
            special=special,
            counters=counters,
            choices=choices,
            masked=masked,
            labels=labels,
            mask_id=mask_id,
            first_random_id=first_random_id,
            random_ids=random_ids,
            choose_below=choose_below,
            mask_below=mask_below,
            random_below=random_below,
            ignore_index=ignore_index,
            seed=int(seed),
            threads=num_threads(),
        )
        return masked, labels
    check_integers("input_ids", input_ids, ("tokens",), torch.int64)
    per_token: dict[str, Wanted] = {"special": (special, torch.uint8, (tokens,))}
    for name, x in (("counters", counters), ("choices", choices)):
        per_token[name] = (x, torch.int64, (tokens,))
    check_launch("mask_tokens", backend, input_ids, **per_token)
    check_dropout(0, seed, input_ids)
    if tokens:
        launch(
            _mask_kernel,
            (triton.cdiv(tokens, BLOCK),),
            input_ids,
            special,
            input_ids if counters is None else counters,
            input_ids if choices is None else choices,
            seed,
            masked,
            labels,
            *settings,
            HAS_COUNTERS=counters is not None,
            HAS_CHOICES=choices is not None,
            BLOCK=BLOCK,
        )
    return masked, labels


@register_fake(_mask_tokens)
def _(input_ids: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return input_ids.new_empty(input_ids.shape), input_ids.new_empty(input_ids.shape)


def mask_tokens(
    input_ids: Tensor,
    special: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    word_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    first_random_id: int = 0,
    ignore_index: int = -100,
    seed: int | Tensor = 0,
    counters: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ids with some tokens hidden, and labels to predict there.

    Args:
        input_ids: (tokens,) int64, each in [0, vocab_size).
        special: (tokens,) bool, true where a token is never chosen: [CLS], [SEP], padding.
        mask_id: of [MASK].
        vocab_size: at most 2^31.
        rate: of the tokens chosen, in [0, 1]: 0 is none, 1 all.
        mask_share: of the chosen tokens that become [MASK].
        random_share: of the chosen tokens that become a random id; the rest stay.
        word_ids: (tokens,) int64, for whole-word masking. Consecutive tokens of the same id are one
            word and chosen together. A token below 0 is of no word and never chosen (Hugging Face's
            ``word_ids()`` with -1 for None). None: each token by itself.
        cu_seqlens: (sequences + 1,) int32 boundaries, across which no word goes. None: words end
            where the id changes.
        first_random_id: the first id that can be drawn: above the special tokens' ids, it keeps
            them from being drawn.
        ignore_index: the label of tokens that are not chosen.
        seed: an int of 64 bits, or an int64 tensor of one element on the ids' device.
        counters: (tokens,) int64, the number under which a token draws its bits, so that they stay
            with it however batches are made up. None: its index.

    Returns:
        masked_ids (tokens,) int64, and labels (tokens,) int64: the original id where a token was
        chosen, else ignore_index.

    Raises:
        TypeError: a wrong dtype, or a seed that is no integer.
        ValueError: wrong shapes or devices, shares or ids out of range. On the CPU also values out
            of range in the tensors (on a GPU they are not read).
    """
    check_integers("input_ids", input_ids, ("tokens",), torch.int64)
    _check_shares(rate, mask_share, random_share)
    if not 0 < vocab_size <= 2**31:
        raise ValueError(f"vocab_size is {vocab_size}; it must be above 0 and at most 2^31")
    for name, value in (("mask_id", mask_id), ("first_random_id", first_random_id)):
        if not 0 <= value < vocab_size:
            raise ValueError(f"{name} is {value}; it must be from 0 to {vocab_size - 1}")
    check_range("input_ids", input_ids, 0, vocab_size - 1)
    _check_tokens("special", special, torch.bool, input_ids)
    if word_ids is not None:
        _check_tokens("word_ids", word_ids, torch.int64, input_ids)
    if counters is not None:
        _check_tokens("counters", counters, torch.int64, input_ids)
    if cu_seqlens is not None:
        check_integers("cu_seqlens", cu_seqlens, ("sequences + 1",), torch.int32)
        check_device("cu_seqlens", cu_seqlens, "input_ids", input_ids)
        check_cu_seqlens(cu_seqlens, input_ids.shape[0], max_seqlen=2**31)
    seed = as_seed(seed, input_ids.device)
    choices = None
    if word_ids is not None:
        special = special | (word_ids < 0)
        choices = _word_starts(word_ids, cu_seqlens)
        choices = choices if counters is None else counters[choices]
    backend = dispatch.select("mask_tokens", input_ids.device, input_ids.dtype)
    bounds = [round(share * WORD_RANGE) for share in (rate, mask_share, mask_share + random_share)]
    arguments = (input_ids, special, counters, choices, seed)
    numbers = (mask_id, first_random_id, vocab_size - first_random_id, *bounds, ignore_index)
    if backend == "reference":
        return reference.mask_tokens(*arguments, *numbers)
    return _mask_tokens(*arguments, *numbers, backend)


def _check_tokens(name: str, x: Tensor, dtype: torch.dtype, input_ids: Tensor) -> None:
    check_integers(name, x, ("tokens",), dtype)
    check_device(name, x, "input_ids", input_ids)
    if x.shape != input_ids.shape:
        raise ValueError(
            f"{name} has {x.shape[0]} entries and there are {input_ids.shape[0]} tokens; "
            "they must be the same"
        )


def _check_shares(rate: float, mask_share: float, random_share: float) -> None:
    for name, share in (("rate", rate), ("mask_share", mask_share), ("random_share", random_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}; it must be from 0 to 1")
    if round((mask_share + random_share) * WORD_RANGE) > WORD_RANGE:
        raise ValueError(
            f"mask_share is {mask_share} and random_share {random_share}; "
            "their sum must be at most 1"
        )


def _word_starts(word_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """(tokens,) int64, the index of the first token of each token's word."""
    tokens = word_ids.shape[0]
    starts = torch.ones(tokens + 1, dtype=torch.bool, device=word_ids.device)
    starts[1:tokens] = word_ids[1:] != word_ids[:-1]
    if cu_seqlens is not None:
        starts = starts.index_fill(0, cu_seqlens.long(), True)
    index = torch.arange(tokens, device=word_ids.device)
    return torch.where(starts[:tokens], index, 0).cummax(0).values
