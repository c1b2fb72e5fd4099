"""What the ops and the training step cost, beside what their users run today: ``python -m
benchmarks cpu`` or ``gpu``.

One file per op, each a pytest-benchmark case by shape and dtype; `timing.py` says how sides are
timed against one another.
"""
