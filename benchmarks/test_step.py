"""A whole training step of a BERT, forward, backward and optimizer, against transformers."""

from __future__ import annotations

import pytest

from benchmarks.settings import DTYPES, STEP_BATCHES, make_setup, step_config
from bertfast.bench import steps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", STEP_BATCHES, ids=[batch.name for batch in STEP_BATCHES])
def test_step(contest, lengths, dtype) -> None:
    contest(steps.case, make_setup(lengths, dtype, step_config()))
