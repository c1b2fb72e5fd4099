"""The input layer, dropout included, forward and backward, against the ops in a row and against
copying alone.
"""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, SIZES, make_setup
from bertfast.bench.ops import embed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", SIZES, ids=[batch.name for batch in SIZES])
def test_embed(contest, lengths, dtype) -> None:
    contest(embed.case, make_setup(lengths, dtype))
