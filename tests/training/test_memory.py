"""Large blocks that are freed and asked for again are not mapped anew."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from bertfast.training.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("cannot"); sys.exit()
for _ in range(3):
    torch.ones(50_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    ).stdout
    if printed.strip() == "cannot":
        pytest.skip("this C library has no mallopt")
    return int(printed)


@pytest.mark.slow
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert faults("keep") < 1000
    assert faults("keep") < faults("give back") / 2
