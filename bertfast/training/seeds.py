"""The seeds of a run's dropouts."""

from __future__ import annotations


def dropout_seed(seed: int, step: int, part: int) -> int:
    """A 64-bit seed for one forward, far from its neighbours': splitmix64's finaliser (Steele et
    al., 2014) of the three.
    """
    mask = (1 << 64) - 1
    x = (
        seed * 0x9E3779B97F4A7C15 + step * 0xD1342543DE82EF95 + part * 0xBF58476D1CE4E5B9 + 1
    ) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x
