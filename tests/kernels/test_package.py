"""The folder has one name, ``bertfast.kernels``, whatever else can be found from where Python was
started.
"""

import subprocess
import sys

import pytest

from support import REPOSITORY


@pytest.mark.slow
def test_the_ops_are_registered_once_when_the_folder_is_found_as_kernels_too():
    program = """
import sys
import torch
from bertfast import kernels as ours
sys.path.insert(0, "")
import kernels as found
assert found is not ours and not hasattr(found, "attention") and not hasattr(found, "__version__")
assert "kernels.attention" not in sys.modules
x = torch.ones(64, requires_grad=True)
ours.dropout(x, 0.5).sum().backward()
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=120)
