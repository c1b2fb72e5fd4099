"""The positions' rotation of queries and keys, forward and backward, against plain PyTorch and
against copying alone.
"""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, SIZES, make_setup
from bertfast.bench.ops import rotary


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(contest, dtype) -> None:
    contest(rotary.case, make_setup(SIZES[-1], dtype))
