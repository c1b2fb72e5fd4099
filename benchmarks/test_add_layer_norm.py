"""The end of half a block, dropout included, forward and backward, against the ops in a row and
against copying alone.
"""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, SIZES, make_setup
from bertfast.bench.ops import add_layer_norm

FORMS = {"post-norm": {}, "pre-norm-rms": {"prenorm": True, "rms": True}}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", SIZES, ids=[batch.name for batch in SIZES])
def test_add_layer_norm(contest, lengths, dtype, form) -> None:
    contest(add_layer_norm.case, make_setup(lengths, dtype), **form)
