"""Hiding 15 % of the tokens, against drawing with torch's generator and against copying alone."""

from __future__ import annotations

import pytest

from benchmarks.settings import SIZES, make_setup
from bertfast.bench.ops import mask_tokens


@pytest.mark.parametrize("lengths", SIZES, ids=[batch.name for batch in SIZES])
def test_mask_tokens(contest, lengths) -> None:
    contest(mask_tokens.case, make_setup(lengths, "float32"))
