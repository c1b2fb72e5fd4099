"""Each schedule rises over the warm-up and then falls as its source says."""

import math

import pytest

from bertfast import BertfastError
from bertfast.training.schedules import SCHEDULES, schedule


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_share_rises_evenly_and_never_again(name, warmup):
    shares = [schedule(name, warmup, 40, 10)(step) for step in range(41)]
    assert shares[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    assert all(a >= b for a, b in zip(shares[warmup:], shares[warmup + 1 :], strict=False))
    assert all(0 <= share <= 1 for share in shares)
    if name != "inverse-sqrt":
        assert shares[40] == pytest.approx(0, abs=1e-12)


def test_the_shares_are_those_of_the_papers():
    cosine, wsd, root = (schedule(name, 4, 24, 10) for name in ("cosine", "wsd", "inverse-sqrt"))
    assert cosine(14) == pytest.approx(0.5)
    assert cosine(9) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert [wsd(step) for step in (4, 13, 14)] == [1, 1, 1]
    assert wsd(19) == pytest.approx(1 - math.sqrt(0.5))
    assert root(15) == pytest.approx(0.5)


def test_another_name_is_refused():
    with pytest.raises(BertfastError, match="schedule is 'step'; it must be one of linear, cosine"):
        schedule("step", 0, 1, 1)
