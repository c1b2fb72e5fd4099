"""Seeds of sites: the same for good, since a resumed run takes the bits that it had."""

import pytest
import torch

from bertfast.seeds import ADAPTER, DISCRIMINATOR, DROPOUT, SAMPLING, fold_in, host_seed, step_seed


@pytest.mark.parametrize(
    ("seed", "step", "part", "expected"),
    [
        (0, 0, 0, 6238072747940578789),
        (0, 1, 0, -7501344141531872114),
        (1, 0, 3, 1033284918006472414),
        (2**63 - 1, 10**6, 7, 6830504143146637550),
    ],
)
def test_a_steps_seed_stays_what_it_was(seed, step, part, expected):
    assert step_seed(seed, step, part) == expected


@pytest.mark.parametrize("site", [DROPOUT, SAMPLING, DISCRIMINATOR, ADAPTER])
@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_a_seed_folds_alike_as_a_number_and_as_a_tensor(seed, site):
    folded = fold_in(torch.tensor([seed]), site, torch.arange(5))
    assert folded.tolist() == [fold_in(seed, site, index) for index in range(5)]
    assert len(set(folded.tolist())) == 5


def test_sites_of_the_host_have_streams_of_their_own():
    states = [host_seed(*path).generate_state(2).tolist() for path in ((3, 0), (3, 1), (4, 0))]
    assert len(set(map(tuple, states))) == 3
