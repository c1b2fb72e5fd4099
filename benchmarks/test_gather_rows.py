"""Picking the masked 15 % of the rows, forward and backward, against indexing and against copying
alone.
"""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, SIZES, make_setup
from bertfast.bench.ops import gather_rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_rows(contest, dtype) -> None:
    contest(gather_rows.case, make_setup(SIZES[-1], dtype))
