"""Shares of the peak learning rate by the update's index; each rises over the warm-up first."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from bertfast.checks import one_of

from .optimizer import linear_schedule


def cosine_schedule(step: int, warmup: int, total: int) -> float:
    """Down to 0 at ``total`` by half a wave of the cosine. Loshchilov and Hutter, "SGDR" (2017)."""
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))


def wsd_schedule(step: int, warmup: int, total: int, decay: int) -> float:
    """1 after the warm-up, and over the last ``decay`` updates down to 0 at ``total`` by one minus
    a square root. Hägele et al., "Scaling laws and compute-optimal training beyond fixed training
    durations" (2024).
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - (total - decay)) / max(decay, 1)
    return 1 - math.sqrt(min(max(done, 0.0), 1.0))


def inverse_sqrt_schedule(step: int, warmup: int) -> float:
    """Down with the square root of the updates. Vaswani et al., "Attention is all you need",
    section 5.3.
    """
    if step < warmup:
        return (step + 1) / warmup
    return math.sqrt(max(warmup, 1) / max(step + 1, warmup, 1))


SCHEDULES = ("linear", "cosine", "wsd", "inverse-sqrt")


def schedule(name: str, warmup: int, total: int, decay: int) -> Callable[[int], float]:
    """The share of the peak rate as a function of the update's index.

    Args:
        name: one of `SCHEDULES`.
        warmup: updates over which the rate rises.
        total: updates of the run.
        decay: those of "wsd" over which the rate falls.

    Raises:
        BertfastError: there is no such schedule.
    """
    one_of("schedule", name, SCHEDULES)
    if name == "wsd":
        return partial(wsd_schedule, warmup=warmup, total=total, decay=decay)
    if name == "inverse-sqrt":
        return partial(inverse_sqrt_schedule, warmup=warmup)
    chosen = linear_schedule if name == "linear" else cosine_schedule
    return partial(chosen, warmup=warmup, total=total)
