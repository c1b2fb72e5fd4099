"""Every epoch has each row once, in an order of its own, from whichever batch one starts."""

from itertools import islice

import numpy as np
import pytest

from bertfast.data.epochs import epoch_batches, in_batches, shuffled_batches


def batches(rows, size, count, start=0):
    drawn = shuffled_batches(rows, size, lambda epoch: np.random.default_rng([7, epoch]), start)
    return list(islice(drawn, count))


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (9, 3), (2, 5), (1, 1)])
def test_an_epoch_has_each_row_once_in_its_own_order(rows, size):
    per_epoch = -(-rows // size)
    drawn = batches(rows, size, 2 * per_epoch)
    assert [epoch for epoch, _ in drawn] == [0] * per_epoch + [1] * per_epoch
    for epoch in (0, 1):
        order = [row for number, part in drawn if number == epoch for row in part]
        assert order == np.random.default_rng([7, epoch]).permutation(rows).tolist()
        assert all(len(part) <= size for _, part in drawn)


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_a_later_start_goes_on_with_the_same_batches(start):
    assert batches(10, 3, 5, start) == batches(10, 3, 5 + start)[start:]


LENGTHS = np.random.default_rng(0).integers(1, 40, 900)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("tokens", [None, 40, 200])
def test_batches_have_each_row_once_and_no_more_than_asked(tokens, alike):
    drawn = epoch_batches(LENGTHS, np.random.default_rng(3), 8, tokens, alike)
    assert sorted(row for rows in drawn for row in rows) == list(range(900))
    if tokens is None:
        assert all(len(rows) <= 8 for rows in drawn)
    else:
        assert all(LENGTHS[rows].sum() <= tokens for rows in drawn)
    spread = np.mean([np.ptp(LENGTHS[rows]) for rows in drawn])
    assert (spread < 5) == alike


def test_without_like_lengths_the_order_is_that_of_the_permutation():
    drawn = epoch_batches(LENGTHS, np.random.default_rng(3), 7)
    order = np.random.default_rng(3).permutation(900)
    assert [row for rows in drawn for row in rows] == order.tolist()


def test_the_largest_batches_are_halved_up_to_a_count():
    assert in_batches([[1, 2, 3], [4]], 2) == [[1, 2, 3], [4]]
    made = in_batches([[1, 2, 3], [4, 5]], 5)
    assert made == [[1], [2], [3], [4], [5]]
