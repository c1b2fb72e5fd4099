"""Attention of 12 heads of 64, forward and backward, on packed tokens against what pads."""

from __future__ import annotations

import pytest

from benchmarks.settings import BATCHES, CURRENT, DTYPES, make_setup
from bertfast.bench.ops import attention


@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", BATCHES, ids=[batch.name for batch in BATCHES])
def test_attention(contest, lengths, dtype, dropout_p) -> None:
    contest(attention.case, make_setup(lengths, dtype), dropout_p=dropout_p)


@pytest.mark.skipif(CURRENT.device == "cpu", reason="cuDNN is for GPUs")
@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids=["no-dropout", "dropout"])
def test_attention_cudnn(contest, dropout_p) -> None:
    setup = make_setup(BATCHES[0], "bfloat16")
    contest(attention.case, setup, dropout_p=dropout_p, cudnn_backward=True)
