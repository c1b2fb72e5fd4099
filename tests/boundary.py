"""Calls of every function of the C++ extension and of every private op, right and wrong.

`test_boundary.py` runs this file in a process of its own, in which a crash is a failure, and
`sanitize.py` runs its calls under the sanitizers. Every tensor of a call ends where its memory
ends: the page behind it can be neither read nor written.

    python tests/boundary.py extension|cpp|triton|faults [EXAMPLES]
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

Call = dict[str, Any]
PAGE = mmap.PAGESIZE
TOKENS, HEADS, HEAD_DIM, HIDDEN, VOCAB, BUCKETS, LONGEST = 6, 2, 16, 12, 9, 3, 4

# What each function of the extension writes.
WRITTEN = {
    "adamw": ("weights", "means", "squares", "copies"),
    "add_layer_norm_forward": ("out", "summed", "mean", "rstd"),
    "add_layer_norm_backward": ("dx", "dresidual", "dparameters"),
    "attention_forward": ("out", "lse"),
    "attention_backward": ("dqkv", "dbias", "dquery_scores", "dkey_scores"),
    "bias_gelu_forward": ("out",),
    "bias_gelu_backward": ("dx", "dbias"),
    "check_rows": (),
    "cross_entropy_rows": ("logits", "loss", "correct", "dbias"),
    "dropout": ("out",),
    "embed_forward": ("out", "mean", "rstd"),
    "embed_backward": ("dsum", "dparameters"),
    "gather_rows": ("out",),
    "mask_tokens": ("masked", "labels"),
    "rotary": ("q_out", "k_out"),
    "scatter_rows": ("dx",),
    "sum_of_squares": (),
    "sum_row_groups": ("out",),
    "widened_product": ("out",),
}


def guarded(x: Tensor) -> Tensor:
    """A copy of x, contiguous, behind whose last byte no memory can be touched."""
    if x.numel() == 0 or x.device.type != "cpu":
        return x.clone()
    size = x.numel() * x.element_size()
    room = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, room + PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(start + room), ctypes.c_size_t(PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    place = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=room - size)
    return place.view(x.shape).copy_(x.detach())


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def _attention(dtype: torch.dtype) -> Call:
    shape = (TOKENS, HEADS, HEAD_DIM)
    scores = (TOKENS, HEADS, BUCKETS)
    return {
        **{name: _normal(*shape, dtype=dtype) for name in "qkv"},
        "cu_seqlens": torch.tensor([0, 4, 4, 5], dtype=torch.int32),
        "buckets": torch.arange(2 * LONGEST - 1, dtype=torch.int32) % BUCKETS,
        "bias": _normal(HEADS, BUCKETS, dtype=dtype),
        "query_scores": _normal(*scores, dtype=dtype),
        "key_scores": _normal(*scores, dtype=dtype),
    }


ATTENTION_SCALARS = {"max_seqlen": LONGEST, "window": 2, "scale": 0.25, "threshold": 26}


def extension_call(name: str, dtype: torch.dtype) -> Call:
    """Arguments with which the function `name` of the extension does its work."""
    rows, hidden = TOKENS, HIDDEN
    x, weight = _normal(rows, hidden, dtype=dtype), _normal(hidden)
    moments = {"mean": _normal(rows), "rstd": _normal(rows).abs()}
    room = torch.zeros_like
    counted = {"threshold": 6554, "seed": 7, "threads": 2}
    index = torch.tensor([2, -1, 5, 0])
    if name == "dropout":
        return {"x": x, "out": room(x), **counted}
    if name == "check_rows":
        return {"name": "index", "index": index, "owner": "x", "rows": rows}
    if name == "gather_rows":
        return {"x": x, "index": index, "out": room(x[:4]), "threads": 2}
    if name == "scatter_rows":
        return {"dout": x[:4].clone(), "index": index, "dx": room(x), "threads": 2}
    if name == "mask_tokens":
        ids = torch.arange(rows)
        return {
            "ids": ids, "special": ids == 3, "counters": ids + 2**40, "choices": ids // 2,
            "masked": room(ids), "labels": room(ids), "mask_id": 1, "first_random_id": 2,
            "random_ids": VOCAB - 2, "choose_below": 2**31, "mask_below": 2**30,
            "random_below": 2**31, "ignore_index": -100, "seed": 7, "threads": 2,
        }  # fmt: skip
    if name == "cross_entropy_rows":
        return {
            "logits": _normal(rows, VOCAB, dtype=dtype), "bias": _normal(VOCAB),
            "labels": torch.tensor([0, VOCAB - 1, -100, 3, 4, 5]), "loss": torch.zeros(rows),
            "correct": torch.zeros(rows, dtype=torch.uint8),
            "grad_scale": _normal(rows), "dbias": torch.zeros(VOCAB), "ignore_index": -100,
            "label_smoothing": 0.1, "z_loss": 0.01, "threads": 2,
        }  # fmt: skip
    if name == "add_layer_norm_forward":
        return {
            "x": x, "residual": x.neg(), "weight": weight, "bias": _normal(hidden), "out": room(x),
            "summed": room(x), **{key: room(value) for key, value in moments.items()},
            "eps": 1e-6, "rms": False, **counted,
        }  # fmt: skip
    if name == "add_layer_norm_backward":
        return {
            "dout": x.neg(), "dsummed": x.neg(), "x": x, "residual": x.neg(), "weight": weight,
            **moments, "dx": room(x), "dresidual": room(x), "dparameters": torch.zeros(2, hidden),
            "rms": False, **counted,
        }  # fmt: skip
    if name in ("bias_gelu_forward", "bias_gelu_backward"):
        wide, options = _normal(rows, 2 * hidden, dtype=dtype), {"tanh": True, "gated": True}
        bias = _normal(2 * hidden)
        if name == "bias_gelu_forward":
            return {"x": wide, "bias": bias, "out": room(x), **options, "threads": 2}
        results = {"dx": room(wide), "dbias": room(bias)}
        return {"dout": x, "x": wide, "bias": bias, **results, **options, "threads": 2}
    if name in ("embed_forward", "embed_backward"):
        tables = {
            "word": _normal(VOCAB, hidden, dtype=dtype), "position": x.clone(),
            "segment": _normal(2, hidden, dtype=dtype), "input_ids": torch.arange(rows) + 3,
            "position_ids": torch.arange(rows), "segment_ids": torch.arange(rows) % 2,
            "weight": weight,
        }  # fmt: skip
        if name == "embed_forward":
            results = {"out": room(x), **{key: room(value) for key, value in moments.items()}}
            return {**tables, "bias": _normal(hidden), **results, "eps": 1e-6, **counted}
        results = {"dsum": torch.zeros(rows, hidden), "dparameters": torch.zeros(2, hidden)}
        return {"dout": x.neg(), **tables, **moments, **results, **counted}
    if name == "sum_row_groups":
        return {
            "rows": _normal(rows, hidden), "order": torch.arange(rows).flip(0),
            "starts": torch.tensor([0, 2, rows]), "targets": torch.tensor([1, 4]),
            "out": torch.zeros(5, hidden, dtype=dtype), "threads": 2,
        }  # fmt: skip
    if name == "rotary":
        q = _normal(TOKENS, HEADS, HEAD_DIM, dtype=dtype)
        return {
            "q": q, "k": q.neg(), "q_out": room(q), "k_out": room(q),
            "position_ids": torch.arange(TOKENS), "cos": _normal(7, HEAD_DIM // 2),
            "sin": _normal(7, HEAD_DIM // 2), "inverse": False, "threads": 2,
        }  # fmt: skip
    if name == "adamw":
        sizes = (5, 0, 33)
        return {
            **{key: [_normal(n).abs() for n in sizes] for key in ("weights", "means", "squares")},
            "gradients": [_normal(n, dtype=dtype) for n in sizes],
            "copies": [torch.zeros(n, dtype=torch.bfloat16) for n in sizes],
            "lr": 1e-3, "correction1": 0.1, "correction2": 0.1, "gradient_scale": 0.5,
            "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01, "threads": 2,
        }  # fmt: skip
    if name == "widened_product":
        return {
            "a": x, "b": _normal(hidden, VOCAB, dtype=dtype), "bias": _normal(VOCAB),
            "out": _normal(rows, VOCAB, dtype=dtype), "accumulate": True, "threads": 2,
        }  # fmt: skip
    if name == "sum_of_squares":
        return {"gradients": [_normal(n, dtype=dtype) for n in (5, 0, 33)], "threads": 2}
    tensors = _attention(dtype)
    results = {"out": room(tensors["q"]), "lse": torch.zeros(HEADS, TOKENS)}
    if name == "attention_forward":
        return {**tensors, **results, **ATTENTION_SCALARS, "seed": 7, "threads": 2}
    assert name == "attention_backward", name
    tables = {f"d{key}": room(tensors[key]) for key in ("bias", "query_scores", "key_scores")}
    dqkv = torch.zeros(TOKENS, 3, HEADS, HEAD_DIM, dtype=dtype)
    made = {"dout": tensors["q"].neg(), **results, "dqkv": dqkv, **tables}
    return {**tensors, **made, **ATTENTION_SCALARS, "seed": 7, "threads": 2}


OPS = (
    "adamw",
    "add_layer_norm",
    "add_layer_norm_backward",
    "attention",
    "attention_backward",
    "attention_blocks",
    "bias_gelu",
    "bias_gelu_backward",
    "dropout",
    "embed",
    "embed_backward",
    "gather_rows",
    "gradient_norm",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "mask_tokens",
    "rotary",
    "scatter_rows",
    "sum_rows",
)
# C++ has no use for them.
GPU_OPS = ("attention_blocks",)


def ops_of(backend: str) -> tuple[str, ...]:
    """The private ops that a backend serves."""
    return tuple(name for name in OPS if backend == "triton" or name not in GPU_OPS)


def op_call(name: str, dtype: torch.dtype, backend: str) -> Call:
    """Arguments with which the private op `name` does its work."""
    rows, hidden = TOKENS, HIDDEN
    x, weight, bias = _normal(rows, hidden, dtype=dtype), _normal(hidden), _normal(hidden)
    moments = {"mean": _normal(rows), "rstd": _normal(rows).abs()}
    seed, last = torch.tensor([7]), {"backend": backend}
    if name == "adamw":
        call = extension_call("adamw", dtype)
        call = {key: call[key] for key in ("weights", "gradients", "means", "squares", "copies")}
        rates = torch.tensor([1e-3, 0.1, 0.1, 0.5])
        options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6}
        return {**call, "rates": rates, **options, "weight_decay": [0.01, 0.0, 0.01], **last}
    if name == "gradient_norm":
        return {"gradients": extension_call("adamw", dtype)["gradients"], **last}
    if name == "add_layer_norm":
        tensors = {"x": x, "x_bias": weight.neg(), "residual": x.neg(), "weight": weight}
        tensors |= {"bias": bias, "seed": seed}
        return {**tensors, "eps": 1e-6, "threshold": 6554, "rms": False, "prenorm": True, **last}
    if name == "add_layer_norm_backward":
        tensors = {"dout": x.neg(), "dsummed": x.neg(), "x": x, "x_bias": weight.neg()}
        tensors |= {"residual": x.neg()}
        options = {"seed": seed, "threshold": 6554, "rms": False}
        return {**tensors, "weight": weight, **moments, **options, **last}
    if name == "attention_blocks":
        tensors = _attention(dtype)
        scalars = {"max_seqlen": ATTENTION_SCALARS["max_seqlen"]}
        return {key: tensors[key] for key in ("q", "cu_seqlens")} | scalars | last
    if name in ("attention", "attention_backward"):
        tensors = _attention(dtype)
        options = {**ATTENTION_SCALARS, "seed": seed, "blocks": None, **last}
        if name == "attention":
            return {**tensors, **options}
        out = {"dout": tensors["q"].neg(), "out": tensors["q"].neg(), "lse": _normal(HEADS, TOKENS)}
        return {**tensors, **out, "wanted": [True] * 3, **options}
    if name in ("bias_gelu", "bias_gelu_backward"):
        wide = _normal(rows, 2 * hidden, dtype=dtype)
        call = {"x": wide, "bias": _normal(2 * hidden), "tanh": True, "gated": True, **last}
        return call if name == "bias_gelu" else {"dout": x, **call}
    if name == "dropout":
        return {"x": x, "seed": seed, "threshold": 6554, **last}
    if name in ("embed", "embed_backward"):
        call = extension_call("embed_forward", dtype)
        keys = ("input_ids", "position_ids", "segment_ids", "word", "position", "segment", "weight")
        tensors = {**{key: call[key] for key in keys}, "seed": seed, "threshold": 6554, **last}
        if name == "embed":
            options = {"eps": 1e-6, "padding_idx": 1, "position_padding_idx": 1}
            options |= {"cu_seqlens": None, "sparse_grad": False}
            return {**tensors, "bias": bias, **options}
        return {"dout": x.neg(), **tensors, **moments}
    if name == "gather_rows":
        return {"x": x, "index": torch.tensor([2, -1, 5, 0]), **last}
    if name == "scatter_rows":
        return {"dout": x[:4].clone(), "index": torch.tensor([2, -1, 5, 0]), "rows": rows, **last}
    if name in ("linear_cross_entropy", "linear_cross_entropy_backward"):
        tensors = {
            "hidden": x, "weight": _normal(VOCAB, hidden, dtype=dtype),
            "bias": _normal(VOCAB, dtype=dtype),
            "labels": torch.tensor([0, VOCAB - 1, -100, 3, 4, 5]),
        }  # fmt: skip
        options = {
            "ignore_index": -100,
            "label_smoothing": 0.1,
            "z_loss": 0.01,
            "reduction": "mean",
        }
        if name == "linear_cross_entropy":
            return {**tensors, **options, "gradients_now": True, **last}
        return {"dloss": torch.tensor(1.0), **tensors, **options, **last}
    if name == "mask_tokens":
        call = extension_call("mask_tokens", dtype)
        for key in ("masked", "labels", "threads"):
            del call[key]
        return {"input_ids": call.pop("ids"), **call, "seed": seed, **last}
    if name == "rotary":
        call = extension_call("rotary", dtype)
        for key in ("q_out", "k_out", "threads"):
            del call[key]
        return {**call, **last}
    assert name == "sum_rows", name
    ids = torch.tensor([1, 0, 1, 4, 4, 2])
    call = {"rows": _normal(rows, hidden), "ids": ids, "size": 5, "padding_idx": 2, "dtype": dtype}
    return {**call, "cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32), **last}


def call_op(name: str, call: Call) -> tuple[Tensor, ...]:
    """What the private op returns, or for adamw what it updated."""
    result = getattr(torch.ops.bertfast, name)(**call)
    if name == "adamw":
        return tuple(x for key in WRITTEN["adamw"] for x in call[key])
    return result if isinstance(result, tuple) else (result,)


def call_extension(extension: Any, name: str, call: Call) -> tuple[Any, ...]:
    """What the function returns and what it writes."""
    result = getattr(extension, name)(**call)
    written: list[Any] = []
    for key in WRITTEN[name]:
        written += call[key] if isinstance(call[key], list) else [call[key]]
    return (result, *written)


# --- what goes wrong with an argument ---

DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool,
    torch.uint8, torch.int32, torch.int64,
)  # fmt: skip
NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    65535,
    65536,
    100_000,
    2**31,
    2**40,
    2**62,
    -(2**63),
    2**64,
    0.5,
    None,
    "4",
)
# A huge size would only be a long wait, in memory or in programs of Triton's interpreter.
SIZES = (0, -1, 1, 2, 3, 7, 2**62, -(2**63), 0.5, None, "4")


def strided(x: Tensor, dim: int) -> Tensor:
    """x with its values, and steps of two along the dimension."""
    wide = guarded(torch.stack([x, x], dim + 1).flatten(dim, dim + 1))
    return wide[(slice(None),) * dim + (slice(None, None, 2),)]


def _values(x: Tensor, value: int) -> Tensor:
    x = x.clone()
    x.view(-1)[-1] = value
    return guarded(x)


# Each takes the tensor, an integer, and another tensor of the call.
TENSOR_FAULTS: dict[str, Callable[[Tensor, int, Tensor], Any]] = {
    "short": lambda x, n, _: guarded(x.narrow(n % x.dim(), 0, x.shape[n % x.dim()] - 1)),
    "long": lambda x, n, _: guarded(torch.cat([x, x], n % x.dim())),
    "strided": lambda x, n, _: strided(x, n % x.dim()),
    "transposed": lambda x, _n, _: guarded(x.transpose(0, -1).contiguous()).transpose(0, -1),
    "expanded": lambda x, n, _: guarded(x.narrow(n % x.dim(), 0, 1)).expand(x.shape),
    "dtype": lambda x, n, _: guarded(x.to(DTYPES[n % len(DTYPES)])),
    "meta": lambda x, _n, _: x.to("meta"),
    "empty": lambda x, n, _: x.narrow(n % x.dim(), 0, 0).clone(),
    "absent": lambda _x, _n, _: None,
    "flat": lambda x, _n, _: guarded(x.reshape(-1)),
    "deep": lambda x, n, _: guarded(x).unsqueeze(n % x.dim()),
    "value": lambda x, n, _: _values(x, (-1, -2, 9, 127, -(2**15), 2**15)[n % 6]),
    "wide value": lambda x, n, _: _values(x, (2**62, -(2**62), 2**31 - 1, -(2**31))[n % 4]),
    "shared": lambda _x, _n, other: other,
    "requires grad": lambda x, _n, _: guarded(x).requires_grad_(),
    "offset": lambda x, n, _: guarded(torch.cat([x, x], n % x.dim())).narrow(
        n % x.dim(), 1, x.shape[n % x.dim()]
    ),
    "list": lambda x, _n, _: x.tolist(),
    "address": lambda x, _n, _: x.data_ptr(),
    "numpy": lambda x, _n, _: x.numpy(),
}  # fmt: skip


def tensors_of(call: Call) -> list[tuple[str, int | None]]:
    """The places of the call's tensors: an argument's name, and a place in a list or None."""
    places: list[tuple[str, int | None]] = []
    for name, value in call.items():
        if isinstance(value, Tensor):
            places.append((name, None))
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            places += [(name, i) for i in range(len(value))]
    return places


def at(call: Call, place: tuple[str, int | None]) -> Any:
    """The value at a place."""
    name, i = place
    return call[name] if i is None else call[name][i]


def put(call: Call, place: tuple[str, int | None], value: Any) -> None:
    """Sets the value at a place."""
    name, i = place
    if i is None:
        call[name] = value
    else:
        call[name] = [*call[name][:i], value, *call[name][i + 1 :]]


def copied(call: Call) -> Call:
    """The call with contiguous copies of its tensors, each alone in its memory."""

    def copy(value: Any) -> Any:
        if isinstance(value, list):
            return [copy(one) for one in value]
        if isinstance(value, Tensor):
            return value.detach().clone(memory_format=torch.contiguous_format)
        return value.copy() if isinstance(value, np.ndarray) else value

    return {name: copy(value) for name, value in call.items()}


def in_guarded_memory(call: Call) -> Call:
    """The call with its tensors before pages that cannot be touched."""
    call = dict(call)
    for place in tensors_of(call):
        put(call, place, guarded(at(call, place)))
    return call


def same(got: Any, wanted: Any) -> bool:
    """Whether two results are the same, NaN for NaN, up to the last places of sums: products add in
    another order where a matrix lies in another.
    """
    if got is None:
        return wanted is None
    got, wanted = (torch.as_tensor(x).detach().reshape(-1).contiguous() for x in (got, wanted))
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    # An empty tensor may have strides that no view takes.
    empty = got.is_meta or got.numel() == wanted.numel() == 0
    if empty or torch.equal(got.view(torch.uint8), wanted.view(torch.uint8)):
        return True
    if not got.is_floating_point():
        return False
    few = 8 * torch.finfo(got.dtype).eps
    return torch.allclose(got.double(), wanted.double(), few, few, equal_nan=True)


# Of a private op that is given None for a tensor torch makes an AttributeError.
REFUSALS = (
    AttributeError,
    IndexError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


def check_wrong_call(run: Callable[[Call], tuple[Any, ...]], call: Call, what: str) -> str:
    """Runs a call that may be wrong: it must raise, or give what it gives on clean copies.

    Returns:
        "refused" or "right".
    """
    clean = copied(call)
    print(what, file=sys.stderr, flush=True)
    try:
        got = run(call)
    except REFUSALS:
        return "refused"
    wanted = run(clean)
    if len(got) != len(wanted) or not all(map(same, got, wanted)):
        raise AssertionError(f"{what}: not what clean copies give")
    return "right"


Run = Callable[[str, Call], tuple[Any, ...]]


def explore(
    names: tuple[str, ...], make: Callable[[str, torch.dtype], Call], run: Run, examples: int
) -> dict[str, dict[str, int]]:
    """Calls of each name as it is, and with one or two arguments made wrong; how many were refused
    and how many right.
    """
    counts = {}
    for name in names:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            call = in_guarded_memory(make(name, dtype))
            outcome = check_wrong_call(partial(run, name), call, f"{name} as it is")
            assert outcome == "right", f"{name} as it is"
        counts[name] = wrong_calls(name, make, run, examples)
    return counts


def wrong_calls(
    name: str, make: Callable[[str, torch.dtype], Call], run: Run, examples: int
) -> dict[str, int]:
    """As `explore`, of one name's wrong calls."""
    counts = {"refused": 0, "right": 0}

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def one(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
        call = in_guarded_memory(make(name, dtype))
        done = [make_wrong(call, data) for _ in range(data.draw(st.integers(1, 2)))]
        what = "; ".join([name, str(dtype), *done])
        counts[check_wrong_call(partial(run, name), call, what)] += 1

    one()
    return counts


def make_wrong(call: Call, data: st.DataObject) -> str:
    """Changes an argument of the call; says which and how."""
    places = tensors_of(call)
    plain = [name for name, value in call.items() if type(value) in (int, float, bool, str)]
    if plain and (not places or data.draw(st.integers(0, 3)) == 0):
        name = data.draw(st.sampled_from(plain))
        call[name] = data.draw(
            st.sampled_from(SIZES if name in ("max_seqlen", "size", "rows") else NUMBERS)
        )
        return f"{name} = {call[name]!r}"
    if not places:
        return "no tensor is left"
    place, other = (data.draw(st.sampled_from(places)) for _ in range(2))
    fault, number = data.draw(st.sampled_from(sorted(TENSOR_FAULTS))), data.draw(st.integers(0, 11))
    try:
        put(call, place, TENSOR_FAULTS[fault](at(call, place), number, at(call, other)))
    except (AttributeError, RuntimeError, TypeError, ZeroDivisionError, IndexError):
        return f"{place} cannot be made {fault}"
    return f"{place} {fault} {number}" + (f" with {other}" if fault == "shared" else "")


def faults() -> dict[str, str]:
    """Calls that once wrote or read outside a tensor; the error that each raises now."""
    from bertfast import _C

    outcomes: dict[str, str] = {}

    def attempt(what: str, run: Callable[[], Any]) -> None:
        print(what, file=sys.stderr, flush=True)
        try:
            run()
            outcomes[what] = "no error"
        except Exception as error:
            outcomes[what] = type(error).__name__

    def shortened(name: str, key: str, backend: str, share: int = 2) -> None:
        call = in_guarded_memory(op_call(name, torch.float32, backend))
        value = call[key]
        short = [x[: len(x) // share] for x in value] if isinstance(value, list) else value
        call[key] = short if isinstance(value, list) else value[: len(value) // share]
        attempt(f"{backend}: {name} with short {key}", lambda: call_op(name, call))

    for backend in ("cpp", "triton"):
        shortened("adamw", "means", backend)
        shortened("adamw", "gradients", backend)
        shortened("rotary", "k", backend)
        shortened("rotary", "cos", backend)
        for key in ("k", "v", "bias", "query_scores", "key_scores", "buckets"):
            shortened("attention", key, backend)
        for key in ("dout", "out", "lse"):
            shortened("attention_backward", key, backend)
        for key in ("position_ids", "segment", "position", "weight", "bias"):
            shortened("embed", key, backend)
        for key in ("mean", "rstd", "dout"):
            shortened("embed_backward", key, backend)
        for key in ("labels", "weight", "bias"):
            shortened("linear_cross_entropy", key, backend)
        for key in ("residual", "weight", "bias"):
            shortened("add_layer_norm", key, backend)
        shortened("bias_gelu", "bias", backend)
        shortened("bias_gelu_backward", "dout", backend)
        for key in ("special", "counters", "choices"):
            shortened("mask_tokens", key, backend)
        shortened("sum_rows", "ids", backend)
        if backend == "triton":  # C++ has no use for them
            shortened("sum_rows", "cu_seqlens", backend, share=4)
        shortened("scatter_rows", "dout", backend)
        for name in ("dropout", "attention", "mask_tokens", "add_layer_norm", "embed"):
            call = op_call(name, torch.float32, backend)
            call["seed"] = call["seed"][:0]
            attempt(f"{backend}: {name} with an empty seed", lambda n=name, c=call: call_op(n, c))  # type: ignore[misc]
    for threads in (100_000, 0, -1, 2**40):
        call = {**extension_call("dropout", torch.float32), "threads": threads}
        attempt(f"dropout on {threads} threads", lambda c=call: _C.dropout(**c))  # type: ignore[misc]
    call = extension_call("gather_rows", torch.float32)
    call["out"] = call["index"].view(torch.float32)[:4].view(4, 1)
    call["x"] = call["x"][:, :1]
    attempt("rows gathered onto their index", lambda: _C.gather_rows(**call))
    return outcomes


def main() -> int:
    """Runs a part and prints its counts as JSON."""
    faulthandler.enable()
    os.environ.setdefault("TRITON_INTERPRET", "1")
    part, examples = sys.argv[1], int((sys.argv[2:] or ["40"])[0])
    import bertfast.kernels
    from bertfast import _C

    assert bertfast.kernels
    torch.set_num_threads(2)
    if part == "extension":
        found: Any = explore(
            tuple(WRITTEN),
            extension_call,
            lambda name, call: call_extension(_C, name, call),
            examples,
        )
    elif part == "faults":
        found = faults()
    else:
        found = explore(
            ops_of(part), lambda name, dtype: op_call(name, dtype, part), call_op, examples
        )
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
