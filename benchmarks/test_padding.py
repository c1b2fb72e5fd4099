"""To the packed form and back, forward and backward, against indexing and against copying alone."""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, REAL, make_setup
from bertfast.bench.ops import padding


@pytest.mark.parametrize("build", [padding.pack, padding.unpack], ids=["pack", "unpack"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding(contest, dtype, build) -> None:
    contest(build, make_setup(REAL, dtype))
