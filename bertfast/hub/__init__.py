"""Our kernels under live models of `transformers`."""
