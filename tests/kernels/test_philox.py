"""The counter-based generator: published vectors, shares, and the checks on p and seed."""

import pytest
import torch

from bertfast.kernels.philox import (
    ATTENTION_LANE_RANGE,
    ATTENTION_ROUNDS,
    LANE_RANGE,
    ROUNDS,
    as_seed,
    attention_lanes,
    attention_threshold,
    dropout_threshold,
    flat_lanes,
    keep_scale,
    philox_4x32,
)

CPU = torch.device("cpu")


def words(seed: int, counter: tuple[int, int, int, int], rounds: int) -> list[int]:
    tensors = (torch.tensor([c]) for c in counter)
    return [int(word) for word in philox_4x32(as_seed(seed, CPU), *tensors, rounds)]


@pytest.mark.parametrize(
    ("rounds", "counter", "key", "expected"),
    [
        (ROUNDS, (0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            ROUNDS,
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            ROUNDS,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
        (ATTENTION_ROUNDS, (0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (
            ATTENTION_ROUNDS,
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662),
        ),
        (
            ATTENTION_ROUNDS,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(rounds, counter, key, expected):
    seed = key[0] | key[1] << 32
    seed -= (seed >> 63) << 64  # as a signed 64-bit integer
    assert words(seed, counter, rounds) == list(expected)


def test_lanes_are_uniform_over_16_bits():
    lanes = flat_lanes(as_seed(7, CPU), 1 << 16).float() / LANE_RANGE
    assert abs(lanes.mean().item() - 0.5) < 5 * (1 / 12) ** 0.5 / 2**8
    assert lanes.histc(16, 0, 1).sub(2**12).abs().max().item() < 5 * 2**6


def test_lanes_of_an_element_do_not_depend_on_how_many_are_asked_for():
    seed = as_seed(3, CPU)
    assert torch.equal(flat_lanes(seed, 13), flat_lanes(seed, 100)[:13])


def test_seeds_have_different_lanes():
    assert not torch.equal(flat_lanes(as_seed(1, CPU), 64), flat_lanes(as_seed(2, CPU), 64))


def test_an_attention_lane_is_the_byte_of_the_counter_that_the_page_says():
    seed, starts = as_seed(2**40 + 3, CPU), torch.tensor([0, 7])
    lanes = attention_lanes(seed, starts, 3, 70)
    assert lanes.shape == (2, 3, 70, 70)
    for sequence, head, query, key in (
        (0, 0, 0, 0),
        (1, 2, 69, 31),
        (1, 0, 23, 66),
        (0, 1, 13, 40),
    ):
        a, b = query // 8 % 4, key // 8 % 4
        row = int(starts[sequence]) + query - 8 * a
        made = words(int(seed), (key - 8 * b, row, head, 0), ATTENTION_ROUNDS)
        assert int(lanes[sequence, head, query, key]) == made[a] >> 8 * b & 255


def test_attention_lanes_do_not_depend_on_how_many_are_asked_for():
    seed, starts = as_seed(3, CPU), torch.tensor([0, 100])
    few, many = (attention_lanes(seed, starts[1:], heads, n) for heads, n in ((2, 33), (3, 90)))
    assert torch.equal(few, many[:, :2, :33, :33])


def chi_square(found, expected):
    """The sum over cells, in standard deviations from its mean."""
    freedom = found.numel() - 1
    return (((found - expected).square() / expected).sum() - freedom).abs() / (2 * freedom) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 5, -9])
def test_attention_lanes_are_uniform_over_8_bits(seed):
    lanes = attention_lanes(as_seed(seed, CPU), torch.tensor([0, 256]), 3, 256).flatten()
    assert chi_square(lanes.bincount(minlength=256), lanes.numel() / 256) < 5


SHIFTS = {
    "the next key": (0, 0, 0, 1),
    "the key 8 on, of the same counter": (0, 0, 0, 8),
    "the key 32 on": (0, 0, 0, 32),
    "the next query": (0, 0, 1, 0),
    "the query 8 on, of the same counter": (0, 0, 8, 0),
    "the query and the key 16 on": (0, 0, 16, 16),
    "the next head": (0, 1, 0, 0),
    "the next sequence": (1, 0, 0, 0),
}


@pytest.mark.parametrize("other", [*SHIFTS, "the next seed", "the seed 2**32 on", "its transpose"])
def test_an_attention_lane_says_nothing_of_its_neighbour(other):
    """Pairs of lanes, each in 16 classes, against 256 cells of one size; then pairs of what is kept
    at p = 0.1.
    """
    starts = torch.tensor([0, 256])
    lanes = attention_lanes(as_seed(5, CPU), starts, 3, 256)
    if other in SHIFTS:
        ends = [n - shift for n, shift in zip(lanes.shape, SHIFTS[other], strict=True)]
        first = lanes[tuple(slice(n) for n in ends)]
        second = lanes[tuple(slice(shift, None) for shift in SHIFTS[other])]
    elif other == "its transpose":
        above = torch.ones(256, 256, dtype=torch.bool).triu(1)
        first, second = lanes[..., above], lanes.mT[..., above]
    else:
        step = 1 if other == "the next seed" else 2**32
        first, second = lanes, attention_lanes(as_seed(5 + step, CPU), starts, 3, 256)
    cells = (16 * (first // 16) + second // 16).flatten().bincount(minlength=256)
    assert chi_square(cells, first.numel() / 256) < 5
    threshold = attention_threshold(0.1)
    both = ((first < threshold) & (second < threshold)).float().mean().item()
    share = (threshold / ATTENTION_LANE_RANGE) ** 2
    assert abs(both - share) < 5 * (share / first.numel()) ** 0.5


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 0.999, 1 - 1e-12])
def test_attention_keeps_the_share_that_its_threshold_says(p):
    threshold = attention_threshold(p)
    lanes = attention_lanes(as_seed(11, CPU), torch.tensor([0]), 4, 256)
    dropped, share = (lanes < threshold).float().mean().item(), threshold / ATTENTION_LANE_RANGE
    assert abs(dropped - share) <= 5 * (share * (1 - share) / lanes.numel()) ** 0.5
    assert keep_scale(threshold, ATTENTION_LANE_RANGE) * (1 - share) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "wanted"),
    [(0.0, 0), (1e-9, 1), (1 / 512, 1), (0.1, 26), (0.5, 128), (0.998, 255), (1 - 1e-12, 255)],
)
def test_attentions_probability_is_rounded_to_256ths_and_never_to_none_or_all(p, wanted):
    assert attention_threshold(p) == wanted


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_attention_refuses_a_probability_outside_its_range(p):
    with pytest.raises(ValueError, match="dropout probability"):
        attention_threshold(p)


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
