"""The hot ops: variable-length attention, dropout, row gather, packing, token masking, and the fused linear cross-entropy.

Each op is one file with its Triton kernels, its `torch.library` registration and its public function; `reference.py` says
in plain PyTorch what it computes, `csrc/` holds its C++ twin, and `dispatch.py` decides which one runs.
"""

# From the repository's root this folder can also be found as the top-level name ``kernels``, where transformers looks for Hugging
# Face's package of that name. It must then find nothing: registering the ops twice would destroy the first registration.
if __name__ == "bertfast.kernels":
    from .attention import attention
    from .dispatch import BackendError, use_backend
    from .dropout import dropout
    from .gather_rows import gather_rows
    from .linear_cross_entropy import linear_cross_entropy
    from .mask_tokens import mask_tokens
    from .padding import pack, unpack

    __all__ = [
        "BackendError",
        "attention",
        "dropout",
        "gather_rows",
        "linear_cross_entropy",
        "mask_tokens",
        "pack",
        "unpack",
        "use_backend",
    ]
