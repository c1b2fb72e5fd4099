"""How the ops and the training step are measured beside what people run in their place; `bertfast
bench`, `bertfast profile` and `benchmarks/` share it.
"""
