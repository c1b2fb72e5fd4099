"""A dense layer, forward and backward, against PyTorch's; ``python -m benchmarks.half`` has what
its dtypes cost on older CPUs."""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, SIZES, make_setup
from bertfast.bench.ops import linear


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(contest, dtype) -> None:
    contest(linear.case, make_setup(SIZES[0], dtype))
