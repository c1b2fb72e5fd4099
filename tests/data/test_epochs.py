"""Every epoch has each row once, in an order of its own, from whichever batch one starts."""

from itertools import islice

import numpy as np
import pytest

from bertfast.data.epochs import shuffled_batches


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
