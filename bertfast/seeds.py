"""The seeds of the sites that take random bits, each folded from a seed above it.

A run's seed gives each step one, a step's seed each site of dropout, and so on. A kind of site is a
stride: odd constants, far apart, keep the seeds of different kinds apart.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

RUN, STEP, PART = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95, 0xBF58476D1CE4E5B9
# Of a forward's dropouts, with splitmix64's increment between one and the next.
DROPOUT = RUN - (1 << 64)
# Of one dropout: each index of rows, and the dropout before a head's dense layer.
ROWS = BEFORE_DENSE = 1
# Of the dropouts before an adapter's factors.
ADAPTER = 0x2545F4914F6CDD1D
# Of the parts of a batch of sentences that run one after another, and of the layers drawn.
SENTENCES, LAYERS = 0x369DEA0F31A53F85, 0x4F4FFF8E27B2A5C3
# Of ELECTRA's pretraining.
SAMPLING, DISCRIMINATOR = 0x5851F42D4C957F2D, 0x14057B7EF767814F


@overload
def fold_in(seed: int, site: int, index: int = 1) -> int: ...
@overload
def fold_in(seed: Tensor, site: int, index: int | Tensor = 1) -> Tensor: ...
def fold_in(seed: Any, site: int, index: Any = 1) -> Any:
    """The seed of a site, or of the ``index``-th of its kind: ``seed + index * site`` modulo
    2^64.

    Args:
        seed: an int, or an int64 tensor.
        site: the stride of its kind.
        index: an int, or with a tensor as the seed an int64 tensor that broadcasts with it.
    """
    folded = seed + index * site
    return folded if isinstance(folded, Tensor) else _signed(folded)


def step_seed(seed: int, step: int, part: int) -> int:
    """The seed of one forward of a run, far from its neighbours': splitmix64's finaliser (Steele et
    al., 2014) of the three.
    """
    mask = (1 << 64) - 1
    x = fold_in(fold_in(fold_in(1, RUN, seed), STEP, step), PART, part) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return _signed(x ^ (x >> 31))


def drawn_seed(device: torch.device) -> Tensor:
    """(1,) int64 from torch's generator, for a forward that was given no seed."""
    return torch.randint(-(2**63), 2**63 - 1, (1,), device=device)


def host_seed(seed: int, *path: int) -> np.random.SeedSequence:
    """The seed of a site on the host, as numpy's generators take it: ``path`` is what the site is
    and the numbers of its kind.
    """
    return np.random.SeedSequence([seed % 2**64, *path])


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
