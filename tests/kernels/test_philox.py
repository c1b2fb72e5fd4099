"""The counter-based generator: published vectors, shares, and the checks on p and seed."""

import pytest
import torch

from bertfast.kernels.philox import (
    LANE_RANGE,
    as_seed,
    dropout_threshold,
    flat_lanes,
    keep_scale,
    philox_4x32,
    philox_lanes,
)

CPU = torch.device("cpu")


def words(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    tensors = (torch.tensor([c]) for c in counter)
    return [int(word) for word in philox_4x32(as_seed(seed, CPU), *tensors)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    seed = key[0] | key[1] << 32
    seed -= (seed >> 63) << 64  # as a signed 64-bit integer
    assert words(seed, counter) == list(expected)


def test_lanes_are_uniform_over_16_bits():
    lanes = flat_lanes(as_seed(7, CPU), 1 << 16).float() / LANE_RANGE
    assert abs(lanes.mean().item() - 0.5) < 5 * (1 / 12) ** 0.5 / 2**8
    assert lanes.histc(16, 0, 1).sub(2**12).abs().max().item() < 5 * 2**6


def test_lanes_of_an_element_do_not_depend_on_how_many_are_asked_for():
    seed = as_seed(3, CPU)
    assert torch.equal(flat_lanes(seed, 13), flat_lanes(seed, 100)[:13])


def test_rows_heads_and_seeds_have_different_lanes():
    rows = philox_lanes(as_seed(1, CPU), 64, torch.arange(4)[:, None], torch.arange(3))
    assert rows.shape == (4, 3, 64)
    assert len({tuple(row.tolist()) for row in rows.flatten(0, 1)}) == 12
    assert not torch.equal(flat_lanes(as_seed(1, CPU), 64), flat_lanes(as_seed(2, CPU), 64))


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan"), 0.9999999])
def test_a_probability_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match="dropout probability"):
        dropout_threshold(p)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_kept_elements_are_scaled_by_one_over_the_share_kept(p):
    threshold = dropout_threshold(p)
    assert keep_scale(threshold) * (1 - threshold / LANE_RANGE) == pytest.approx(1, abs=1e-12)
    assert threshold / LANE_RANGE == pytest.approx(p, abs=0.5 / LANE_RANGE)


@pytest.mark.parametrize(
    ("seed", "error"),
    [
        (1.5, TypeError),
        (True, TypeError),
        (2**63, ValueError),
        (torch.zeros(2, dtype=torch.int64), TypeError),
        (torch.zeros(1), TypeError),
    ],
)
def test_a_seed_that_is_not_a_64_bit_integer_is_refused(seed, error):
    with pytest.raises(error, match="seed is"):
        as_seed(seed, CPU)
