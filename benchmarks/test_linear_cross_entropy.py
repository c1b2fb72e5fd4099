"""The loss over BERT's vocabulary, forward and backward, against linear + cross_entropy and against
its matrix products alone.
"""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, MASKED, make_setup
from bertfast.bench.ops import linear_cross_entropy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", MASKED, ids=[batch.name for batch in MASKED])
def test_linear_cross_entropy(contest, lengths, dtype) -> None:
    contest(linear_cross_entropy.case, make_setup(lengths, dtype))
