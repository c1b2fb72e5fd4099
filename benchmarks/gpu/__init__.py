"""``python -m benchmarks gpu``: four parts, each of a few minutes, that show what the kernels do on
a GPU.

The machine needs PyTorch, Triton and NumPy alone.

`parts` runs them, each in processes of its own (`worker`), and each leaves a `journal` in one
folder. Of the folder `records` makes what the page shows.
"""

from .. import importable as importable  # before bertfast, in every process that a part starts
