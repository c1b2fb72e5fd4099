"""A signal ends the run after the step, wherever it struck."""

import signal

import pytest

from bertfast.training.signals import caught_signals


def test_a_signal_is_seen_after_code_that_swallows_every_exception() -> None:
    before = signal.getsignal(signal.SIGINT)
    with caught_signals(signal.SIGINT) as stop:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:  # what a library may do
            pytest.fail("the first signal raises nothing")
        assert stop == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
