"""Dropout of a step's hidden states, forward and backward, against torch's and against copying
alone.
"""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, SIZES, make_setup
from bertfast.bench.ops import dropout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", SIZES, ids=[batch.name for batch in SIZES])
def test_dropout(contest, lengths, dtype) -> None:
    contest(dropout.case, make_setup(lengths, dtype))
