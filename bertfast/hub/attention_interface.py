"""The attention behind ``attn_implementation="bertfast"`` in transformers, for bidirectional models
of any architecture.

transformers calls an attention function for each layer with padded (sequences, heads, positions,
head_dim) tensors. Here the real tokens alone are packed, attended by `kernels.attention` and put
back, with zeros at the padding. What that cannot serve is left to transformers' own
``scaled_dot_product_attention``, call by call, and said once with the reason. As with that function
the mask has the last word. A sliding window is read off the mask, not from the arguments that flash
attention takes.

Sources: "Attention Interface" and "Attention Mask Interface" in transformers' documentation.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from bertfast import kernels
from bertfast.errors import BertfastError
from bertfast.kernels import dispatch
from bertfast.seeds import drawn_seed

# at most this is added to a score that must not count: some models write -10000, others the dtype's
# minimum
MASKED = -1e4
# Arguments of modules that take their keys from elsewhere: then the keys' padding is not the
# queries'.
OTHER_STATES = {
    "key_value_states",
    "encoder_hidden_states",
    "cross_attention_states",
    "context",
    "queries",
    "query",
}


class Packing(NamedTuple):
    """Where the real tokens of a padded (sequences, positions) batch are, and how far each sees.

    Attributes:
        rows: (tokens,) int64 in the flattened batch, -1 for slack; None when every token is real.
        cu_seqlens: (sequences + 1,) int32.
        max_seqlen: at least the longest sequence's length.
        window: as `kernels.attention` takes it.
    """

    rows: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    window: int | None = None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers' ``AttentionInterface`` calls it.

    Args:
        module: the layer's attention module.
        query, key, value: (sequences, heads, positions, head_dim); key and value may have fewer
            heads, each of which serves a group of the query's.
        attention_mask: None, or one of two masks. A mask (sequences, positions) is nonzero for a
            real token. A mask (sequences or 1, heads or 1, positions or 1, positions) is boolean
            (True is seen), or added to the scores.
        dropout: of the probabilities; the seed is drawn from torch's generator.
        scaling: of the scores; None is ``head_dim ** -0.5``.
        is_causal: None is ``module.is_causal``; of no effect where there is a mask.

    Returns:
        (sequences, positions, heads, head_dim), zeros at the padding, and None in place of the
        probabilities.

    Raises:
        BertfastError: the model adds attention sinks or caps its scores, which neither this
            attention nor transformers' own computes.
    """
    for name in ("s_aux", "softcap"):
        if kwargs.get(name) is not None:
            raise BertfastError(
                f"{type(module).__name__} asks for {name}, "
                "which neither bertfast's attention nor torch's computes; "
                'load the model with attn_implementation="eager"'
            )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    reason = _reason_against(module, query, key, value, attention_mask, causal, kwargs)
    packing = reason or _packing(attention_mask, query)
    if isinstance(packing, str):
        _say(
            f"{type(module).__name__}: bertfast leaves this attention to transformers' sdpa: "
            f"{packing}"
        )
        return _sdpa(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )

    shape = (query.shape[0], query.shape[2])
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if packing.rows is None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    else:
        q, k, v = (kernels.pack(x, packing.rows) for x in (q, k, v))
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    seed = drawn_seed(q.device) if dropout else 0
    out = kernels.attention(
        q,
        k,
        v,
        packing.cu_seqlens,
        packing.max_seqlen,
        scale=scaling,
        dropout_p=dropout,
        seed=seed,
        window=packing.window,
    )
    return out.unflatten(0, shape) if packing.rows is None else kernels.unpack(
        out, packing.rows, shape
    ), None


def attention_mask(**arguments: Any) -> Tensor | None:
    """The mask that transformers makes once for all layers, as its ``AttentionMaskInterface`` calls
    for it.

    Of a padding mask alone this is a view, (sequences, 1, positions, positions) with no step
    between the queries. So it takes no memory, and `attention` knows it without reading it. It is
    None where all tokens are real. Every other mask is the one made for sdpa. Some models add the
    mask to their scores themselves and call no attention interface, whatever was asked for. Such a
    model gets the mask to add.
    """
    from transformers import masking_utils

    padding, keys = arguments.get("attention_mask"), arguments["kv_length"]
    positions = arguments.get("cache_position")  # of the queries, before transformers 5.2 or so
    queries = arguments["q_length"] if positions is None else len(positions)
    plain = queries == keys and arguments["mask_function"] is getattr(
        masking_utils, "bidirectional_mask_function", None
    )
    none_will_do = arguments.get("allow_is_bidirectional_skip", False)
    mask: Tensor | None = None
    if not _hands_masks_on(type(arguments["config"]).__module__.rpartition(".")[0]):
        mask = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["eager"](**arguments)
    elif plain and padding is not None and tuple(padding.shape) == (arguments["batch_size"], keys):
        if not none_will_do or _traced() or not bool(padding.all()):
            mask = padding.bool()[:, None, None, :].expand(-1, 1, queries, -1)
    elif not (plain and padding is None and none_will_do):
        mask = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](**arguments)
    if isinstance(mask, Tensor) and queries == keys and not _traced():
        _remember(mask, arguments["batch_size"], keys)
    return mask


_packages: dict[str, bool] = {}


@torch.compiler.assume_constant_result
def _hands_masks_on(package: str) -> bool:
    """Whether the models of this package give their masks to an attention interface, so that sdpa's
    boolean ones fit.
    """
    if package not in _packages:
        models = [
            vars(module)
            for name, module in list(sys.modules.items())
            if name.startswith(f"{package}.modeling")
        ]
        _packages[package] = any(
            "ALL_ATTENTION_FUNCTIONS" in names
            and any(getattr(x, "_supports_sdpa", False) for x in names.values())
            for names in models
        )
    return _packages[package]


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if mask is not None and tuple(mask.shape) == (key.shape[0], key.shape[2]):
        mask = (mask != 0)[:, None, None, :].expand(-1, 1, query.shape[2], -1)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, *args, **kwargs)


def _reason_against(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    kwargs: dict[str, Any],
) -> str:
    """Why the packed attention cannot serve this call, the mask's values aside; empty when it
    can.
    """
    sequences, heads, positions, head_dim = query.shape
    if key.shape[2] != positions or key.shape[0] != sequences:
        return (
            f"{positions} queries and {key.shape[2]} keys are no attention of a sequence to itself"
        )
    if mask is None and causal and positions > 1:
        return "it is causal"
    if mask is not None and _may_cross(module):
        return "under a mask its keys may be another sequence's than its queries"
    for name in ("position_bias", "cache"):
        if kwargs.get(name) is not None:
            return f"it takes a {name}"
    if value.shape != key.shape or key.shape[3] != head_dim or heads % key.shape[1]:
        return (
            f"its heads do not fit: query {tuple(query.shape)}, key {tuple(key.shape)}, "
            f"value {tuple(value.shape)}"
        )
    if not query.dtype == key.dtype == value.dtype:
        return f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}"
    backend = "cpp" if query.device.type == "cpu" else "triton"
    return "; ".join(
        dispatch.reasons_against(backend, "attention", query.device, query.dtype, head_dim)
    )


_crossing: dict[type, bool] = {}  # no functools.cache, which a compiled graph warns of


def _may_cross(module: nn.Module) -> bool:
    """Whether the module may attend from one sequence to another; encoders that share a class with
    their decoder say ``is_decoder``.
    """
    kind = type(module)
    if kind not in _crossing:
        parameters = inspect.signature(kind.forward).parameters
        _crossing[kind] = "Cross" in kind.__name__ or not OTHER_STATES.isdisjoint(parameters)
    return getattr(module, "is_decoder", _crossing[kind])


# What was read off a mask, with the mask's version then: it is read once for all layers, and again
# if it was written to.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _version(mask: Tensor) -> int | None:
    return None if mask.is_inference() else mask._version


def _remember(mask: Tensor, sequences: int, positions: int) -> Packing | str:
    packing = _read(mask, sequences, positions)
    _known[mask] = (_version(mask), packing)
    return packing


def _packing(mask: Tensor | None, query: Tensor) -> Packing | str:
    """Where the real tokens are; or why the mask does not say so."""
    sequences, _, positions, _ = query.shape
    if mask is None:
        starts = torch.arange(sequences + 1, dtype=torch.int32, device=query.device) * positions
        return Packing(None, starts, positions)
    if _traced():
        return _read(mask, sequences, positions)
    version, packing = _known.get(mask, (None, None))
    if packing is not None and version == _version(mask):
        return packing
    # Writes to a tensor made in inference mode leave no trace: only masks made for one call, by
    # `attention_mask`, are remembered then.
    return (
        _read(mask, sequences, positions)
        if mask.is_inference()
        else _remember(mask, sequences, positions)
    )


def _read(mask: Tensor, sequences: int, positions: int) -> Packing | str:
    if tuple(mask.shape) == (sequences, positions):
        return _pack(mask != 0)
    if (
        mask.dim() != 4
        or mask.shape[0] not in (1, sequences)
        or mask.shape[2:] not in ((1, positions), (positions,) * 2)
    ):
        return (
            f"a mask of shape {tuple(mask.shape)} for {sequences} sequences of {positions} "
            "positions"
        )
    if mask.requires_grad:
        return "its mask is learned"
    by_key_alone = all(mask.shape[dim] == 1 or mask.stride(dim) == 0 for dim in (1, 2))
    if _traced() and not (by_key_alone and mask.dtype == torch.bool):
        return "under torch.compile the values of its mask are not looked into"
    seen = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not bool((seen | (mask <= MASKED)).all()):
        return "its mask adds more to the scores than 0 and -inf"
    seen = seen.expand(sequences, -1, positions, -1)
    if by_key_alone:
        return _pack(seen[:, 0, 0])
    return _read_pairs(seen)


def _read_pairs(seen: Tensor) -> Packing | str:
    """The same of (sequences, heads, queries, keys): a token is real if it sees itself, and sees
    all real ones or those within a window.
    """
    real = seen[:, 0].diagonal(dim1=1, dim2=2)
    position = torch.arange(real.shape[1], device=real.device)
    distance = (position[:, None] - position).abs()

    def fits(window: int) -> bool:
        expected = real[:, None, None, :] & (distance <= window)
        # What padding sees, it may also not see: no one asks.
        return bool(((seen == expected) | ~(seen | real[:, None, :, None])).all())

    if fits(len(position)):
        return _pack(real)
    window = int((seen.any(0).any(0) * distance).max())
    if not fits(window):
        return "its mask is neither of padding nor of a sliding window"
    starts = real & ~torch.nn.functional.pad(real, (1, -1))
    if int(starts.sum(1).max()) > 1:
        return "its sliding window meets a mask with holes"
    return _pack(real, window)


def _pack(real: Tensor, window: int | None = None) -> Packing:
    """Of the real tokens, (sequences, positions) bool. A graph that is traced gets fixed sizes,
    with slack for all the padding.
    """
    sequences, positions = real.shape
    lengths = real.sum(1, dtype=torch.int32)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    tokens, max_seqlen = sequences * positions, positions
    if not _traced():
        counts = lengths.tolist()
        if sum(counts) == tokens:
            return Packing(None, cu_seqlens, max_seqlen, window)
        tokens, max_seqlen = sum(counts), max(counts)
    flat = real.flatten()
    place = torch.where(
        flat, flat.cumsum(0) - 1, len(flat)
    )  # in the packed batch; past its end for padding
    rows = torch.full((len(flat) + 1,), -1, device=real.device)
    rows = rows.scatter(0, place, torch.arange(len(flat), device=real.device))[
        : min(tokens, len(flat))
    ]
    return Packing(rows, cu_seqlens, max_seqlen, window)


def _traced() -> bool:
    """Whether a graph is being recorded, for which no value may be read."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


_said: set[str] = set()


# so that a graph is traced through it, and the text said as that is done
@torch.compiler.assume_constant_result
def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=2)
