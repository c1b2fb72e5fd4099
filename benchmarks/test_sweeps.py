"""A few points along one axis, for the plots: tokens, sequence length at a constant number of
tokens, and the share of non-padding.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.settings import CURRENT, make_setup, step_config
from bertfast.bench import steps
from bertfast.bench.lengths import Lengths, full, wikitext
from bertfast.bench.ops import attention, linear_cross_entropy

CUDA = CURRENT.device == "cuda"
DTYPE = "bfloat16" if CUDA else "float32"
PARAGRAPHS = (2, 4) if CURRENT.quick else (32, 128, 512) if CUDA else (2, 8, 32)
TOKENS = (
    32 if CURRENT.quick else 65536 if CUDA else 2048
)  # of every point of the sweep over lengths
LENGTHS = (8, 16) if CURRENT.quick else (64, 128, 256, 512, 1024)
PREDICTED = (8, 16) if CURRENT.quick else (1024, 4096, 16384) if CUDA else (64, 256, 1024)
SEQUENCES, LONGEST = (2, 8) if CURRENT.quick else (64, 512) if CUDA else (8, 128)
FILLS = (0.25, 0.5, 0.75, 1.0)


def filled(fill: float) -> Lengths:
    """A batch of so much non-padding: one sequence of full length, the others alike."""
    rest = fill if fill == 1 else (fill * SEQUENCES - 1) / (SEQUENCES - 1)
    return Lengths(
        f"{fill:.0%} filled", (LONGEST, *[max(1, round(rest * LONGEST))] * (SEQUENCES - 1))
    )


def plain(lengths: Lengths, config=None):
    """Without compiled peers, which are in the tables."""
    return replace(make_setup(lengths, DTYPE, config), compiled=False)


@pytest.mark.parametrize("paragraphs", PARAGRAPHS)
def test_attention_over_tokens(contest, paragraphs) -> None:
    lengths = wikitext(paragraphs)
    contest(attention.case, plain(lengths), sweep=("attention-tokens", lengths.tokens))


@pytest.mark.parametrize("length", LENGTHS)
def test_attention_over_sequence_length(contest, length) -> None:
    contest(
        attention.case, plain(full(TOKENS // length, length)), sweep=("attention-length", length)
    )


@pytest.mark.parametrize("masked", PREDICTED)
def test_linear_cross_entropy_over_tokens(contest, masked) -> None:
    lengths = full(1, round(masked / steps.MASKED_SHARE))
    contest(
        linear_cross_entropy.case, plain(lengths), sweep=("linear_cross_entropy-tokens", masked)
    )


@pytest.mark.parametrize("fill", FILLS)
def test_step_over_fill(contest, fill) -> None:
    lengths = filled(fill)
    contest(
        steps.case,
        plain(lengths, step_config()),
        sweep=("step-fill", lengths.fill),
        attentions=("sdpa",),
    )
