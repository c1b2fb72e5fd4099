"""BERT's masking, against drawing it with torch's generator."""

from __future__ import annotations

import torch

from bertfast import kernels
from bertfast.packed import IGNORE_INDEX

from .. import floors
from ..case import Call, Case, Results, Setup, Sides

RATE, MASK_SHARE, RANDOM_SHARE = 0.15, 0.8, 0.1
MASK_ID = 103


def case(setup: Setup) -> Case:
    """Ids (tokens,) to masked ids and labels; the draws differ, so that the sides are compared by
    their shares.
    """
    tokens, vocab = setup.lengths.tokens, setup.config.vocab_size
    mask_id = min(MASK_ID, vocab - 1)
    ids = torch.randint(vocab, (tokens,)).to(setup.device)
    ids[ids == mask_id] = 0  # a kept token is then never taken for a hidden one
    special = torch.zeros(tokens, dtype=torch.bool, device=setup.device)
    special[setup.lengths.cu_seqlens(setup.device)[:-1].long()] = True

    def ours() -> Results:
        return kernels.mask_tokens(ids, special, mask_id=mask_id, vocab_size=vocab, seed=7)

    def eager() -> Results:
        chosen = torch.bernoulli(
            torch.full(ids.shape, RATE, device=ids.device).masked_fill(special, 0.0)
        ).bool()
        labels = torch.where(chosen, ids, IGNORE_INDEX)
        hidden = (
            torch.bernoulli(torch.full(ids.shape, MASK_SHARE, device=ids.device)).bool() & chosen
        )
        replaced = torch.bernoulli(
            torch.full(ids.shape, RANDOM_SHARE / (1 - MASK_SHARE), device=ids.device)
        ).bool()
        words = torch.randint(vocab, ids.shape, device=ids.device)
        masked = torch.where(hidden, mask_id, torch.where(replaced & chosen & ~hidden, words, ids))
        return masked, labels

    def shares(call: Call) -> Call:
        """Chosen ones among the tokens; hidden, replaced and kept ones among the chosen; special
        ones chosen; labels that are wrong.
        """

        def probe() -> Results:
            masked, labels = call()
            chosen = labels != IGNORE_INDEX
            count = chosen.sum().clamp(min=1)
            hidden, kept = (masked == mask_id) & chosen, (masked == ids) & chosen
            wrong = ((labels != ids) & chosen) | (chosen & special) | (~chosen & (masked != ids))
            counts = (hidden.sum(), (chosen & ~hidden & ~kept).sum(), kept.sum(), wrong.sum())
            return (torch.stack([chosen.sum() / tokens, *(x / count for x in counts)]),)

        return probe

    sides = Sides(setup)
    sides.ours("mask_tokens", ours, shares(ours))
    sides.peer("torch.bernoulli + torch.where", eager, shares(eager))
    if setup.compiled:
        compiled = torch.compile(eager, dynamic=False)
        sides.peer("torch.bernoulli + torch.where, compiled", compiled, shares(compiled))
    floor = floors.mask_tokens(tokens)
    sides.copies(floor)
    return Case(
        "mask_tokens",
        f"{tokens} tokens",
        "int64",
        sides,
        floor,
        tolerance=6 / max(1.0, RATE * tokens) ** 0.5,  # six deviations of a share
        facts={"tokens": tokens},
        missing=sides.missing,
    )
