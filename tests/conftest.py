"""Settings that must stand before Triton and torch are imported."""

import inspect
import os

import pytest
import torch

# With no GPU the Triton kernels run in Triton's interpreter, which is chosen when a kernel is
# decorated.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# No test goes out to the network; those of the Hub bring a cache or an endpoint of their own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run in parallel processes; more threads than cores would only slow them down.
torch.set_num_threads(int(os.environ.get("BERTFAST_TEST_THREADS", "1")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what `slow_unless` does not keep: its argument is a function of some of the
    test's parameters, by name, that says whether a case stays in the fast suite.
    """
    for item in items:
        for mark in item.iter_markers("slow_unless"):
            keeps = mark.args[0]
            parameters = item.callspec.params  # type: ignore[attr-defined]
            if not keeps(
                **{name: parameters[name] for name in inspect.signature(keeps).parameters}
            ):
                item.add_marker(pytest.mark.slow)
