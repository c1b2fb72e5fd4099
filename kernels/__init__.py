"""The hot ops of a BERT training step.

Each op is one file, the attention a package, with its Triton kernels, its `torch.library`
registration and its public function. `reference.py` says in plain PyTorch what it computes,
`csrc/` holds its C++ twin, and
`dispatch.py` decides which one runs.
"""

# From the repository's root this folder can also be found as the top-level name ``kernels``, where
# transformers looks for Hugging Face's package of that name. It must then find nothing: registering
# the ops twice would destroy the first registration.
if __name__ == "bertfast.kernels":
    from .adamw import adamw, gradient_norm
    from .add_layer_norm import add_layer_norm
    from .attention import attention, attention_blocks
    from .bias_gelu import bias_gelu
    from .dispatch import BackendError, use_backend
    from .dropout import dropout
    from .embed import embed
    from .gather_rows import gather_rows
    from .linear import linear
    from .linear_cross_entropy import linear_cross_entropy
    from .mask_tokens import mask_tokens
    from .padding import pack, unpack
    from .positions import RelativePositions, alibi, alibi_slopes, deberta_buckets, t5_buckets
    from .rotary import rotary, rotary_tables

    __all__ = [
        "BackendError",
        "RelativePositions",
        "adamw",
        "add_layer_norm",
        "alibi",
        "alibi_slopes",
        "attention",
        "attention_blocks",
        "bias_gelu",
        "deberta_buckets",
        "dropout",
        "embed",
        "gather_rows",
        "gradient_norm",
        "linear",
        "linear_cross_entropy",
        "mask_tokens",
        "pack",
        "rotary",
        "rotary_tables",
        "t5_buckets",
        "unpack",
        "use_backend",
    ]
