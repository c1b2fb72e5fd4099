"""The activation of the feed-forward layer, forward and backward, against the ops in a row and
against copying alone.
"""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, SIZES, make_setup
from bertfast.bench.ops import bias_gelu

FORMS = {"erf": {}, "tanh": {"approximate": "tanh"}, "gated": {"gated": True}}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_gelu(contest, dtype, form) -> None:
    contest(bias_gelu.case, make_setup(SIZES[-1], dtype), **form)
