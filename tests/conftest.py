"""Settings that must stand before Triton and torch are imported."""

import os

import torch

# With no GPU the Triton kernels run in Triton's interpreter, which is chosen when a kernel is
# decorated.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Tests run in parallel processes; more threads than cores would only slow them down.
torch.set_num_threads(int(os.environ.get("BERTFAST_TEST_THREADS", "1")))
