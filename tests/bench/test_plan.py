"""The model of a run on many GPUs: what it must be in cases that are plain, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest

from bertfast.bench import floors, plan, steps
from bertfast.bench.gpus import COPY_SHARE, GPUS, LINK_SHARE
from bertfast.bench.lengths import Lengths
from bertfast.cli.main import main
from bertfast.config import EncoderConfig

BASE, H100 = EncoderConfig.preset("bert-base"), GPUS["h100"]
OPTIONS = {"batch_tokens": 8192, "seq_len": 512}


@pytest.fixture
def unrecorded(monkeypatch):
    monkeypatch.setattr(plan, "activation_bytes", lambda *_: 10**9)


def test_one_gpu_takes_its_floor(unrecorded):
    one = plan.plan(BASE, H100, 1, 1e9, **OPTIONS)
    lengths = Lengths("", (512,) * 16)
    ops = floors.step_ops(BASE, lengths, steps.masked_count(8192), 109_514_298, 2)
    rates = {"matrix bfloat16": H100.rate, "copy": H100.bandwidth * COPY_SHARE}
    seconds = sum(op.seconds(rates, "bfloat16") for op in ops.values())
    assert one.computing == pytest.approx(seconds)
    assert (one.sending, one.exposed, one.efficiency) == (0.0, 0.0, 1.0)
    assert one.hours == pytest.approx(1e9 / 8192 * seconds / 3600)


def test_a_measured_rate_takes_the_place_of_the_floor(unrecorded):
    one = plan.plan(BASE, H100, 1, 3.6e9, rate=1e5, price=2.0, **OPTIONS)
    assert one.rate == pytest.approx(1e5)
    assert one.hours == pytest.approx(10.0)
    assert one.cost == pytest.approx(20.0)


def test_a_sum_over_gpus_takes_the_slowest_links_time():
    size = 1e9
    two = plan.reduce_seconds(size, H100, 2)
    assert two == pytest.approx(size / (H100.nvlink * LINK_SHARE), rel=0.2)
    many = plan.reduce_seconds(size, H100, 4096)
    assert many > 2 * size / 8 / (H100.network * LINK_SHARE)
    sums = [plan.reduce_seconds(size, H100, count) for count in (1, 2, 8, 64, 512, 4096)]
    assert sums == sorted(sums)


def test_a_backward_hides_what_it_lasts_for_but_the_last_bucket():
    assert plan.hidden_by(3.0, 0.0, 1e9) == 0.0
    assert plan.hidden_by(3.0, 1.0, 1e9) == pytest.approx(1.0 / 39, rel=0.1)
    assert plan.hidden_by(3.0, 5.0, 1e9) == pytest.approx(5.0 - 2.0, rel=0.05)
    assert plan.hidden_by(3.0, 5.0, 1e3) == 5.0  # one bucket hides nothing


def test_fewer_tokens_a_gpu_bend_the_efficiency(unrecorded):
    shares = [
        plan.plan(BASE, H100, 512, 1e9, batch_tokens=tokens, seq_len=512).efficiency
        for tokens in (512, 4096, 65536)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.6 < 0.97 < shares[-1]
    wide = plan.plan(BASE, H100, 512, 1e9, batch_tokens=512, seq_len=512, reduction=2)
    assert wide.efficiency > shares[0]


@pytest.mark.slow
def test_activations_are_what_the_step_keeps():
    """They grow with the tokens, and with the layers."""
    pytest.importorskip("triton")
    one, two = (plan.activation_bytes(BASE, tokens, 512) for tokens in (4096, 8192))
    assert 10 * 12 * 768 * 2 * 4096 < one < 30 * 12 * 768 * 2 * 4096
    assert two == pytest.approx(2 * one, rel=0.05)


def test_the_command_prints_a_row_for_each_number(unrecorded, monkeypatch, capsys):
    arguments = "plan --model bert-large --tokens 100e9 --gpus 8 64 --json"
    monkeypatch.setattr(sys, "argv", ["bertfast", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["modelled"]
    assert [each["gpus"] for each in found["plans"]] == [8, 64]
    assert found["parameters"] == 335_174_458


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--gpus 0", "gpus is 0"),
        ("--gpu v100", "a100, h100, h200, b200"),
        ("--tokens -1", "tokens is -1"),
        ("--tokens nan", "tokens is nan"),
        ("--model bert-huge", "model is 'bert-huge'"),
        ("--seq-len 9000", "512 positions"),
        ("--update-tokens 1000", "take fewer --gpus"),
        ("--reduction int8", "fp32, bf16"),
        ("--rate 0", "rate is 0"),
    ],
)
def test_a_wrong_option_is_one_line(wrong, said, unrecorded, monkeypatch, capsys):
    arguments = f"plan --model bert-base --tokens 1e9 --gpus 64 {wrong}"
    monkeypatch.setattr(sys, "argv", ["bertfast", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
