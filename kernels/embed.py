"""The embedding layer: ``out = dropout(LayerNorm(word[input_ids] + position[position_ids] +
segment[segment_ids]))``.

ids (tokens,), tables (size, hidden), out (tokens, hidden); position, segment and the norm's bias
are each optional. One pass gathers the rows, adds them and normalises the sum. The backward makes
the sum again, writes its gradient once, (tokens, hidden), and adds those rows into the tables'
gradients group by group: tokens are sorted by id, and each row of a table is the sum of its group
in the order of the tokens, made by one program. Nothing is added twice to one place, so no atomics
are needed and the bits are the same each time; and nothing of a table's size stands in memory but
the gradient itself, or, with ``sparse_grad``, not even that.

Source: Devlin et al., "BERT", section 3 and figure 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import (
    check_device,
    check_dims,
    check_dropout,
    check_ids,
    check_integers,
    check_launch,
    check_like,
    check_norm,
    check_tensor,
    register_fake,
)
from .launch import launch
from .layer_norm_triton import moments, norm_backward, padded_width
from .philox import as_seed, dropout_threshold, keep_scale
from .philox_triton import flat_lanes
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---

PROGRAMS = 256  # of a backward, each with its own sums over its tokens
RUN = (
    256  # sorted tokens whose rows one program adds up at most, before the runs of one id are added
)
COLUMNS = 256


@triton.jit
def _load_embeddings(
    word_ptr,
    position_ptr,
    segment_ptr,
    input_ids_ptr,
    position_ids_ptr,
    segment_ids_ptr,
    token,
    hidden,
    column,
    real,
    POSITION: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """The sum of one token's rows, (1, columns) float32."""
    s = tl.load(word_ptr + tl.load(input_ids_ptr + token) * hidden + column[None, :], real, 0.0).to(
        tl.float32
    )
    if POSITION:
        row = tl.load(position_ids_ptr + token) * hidden
        s += tl.load(position_ptr + row + column[None, :], real, 0.0).to(tl.float32)
    if SEGMENT:
        row = tl.load(segment_ids_ptr + token) * hidden
        s += tl.load(segment_ptr + row + column[None, :], real, 0.0).to(tl.float32)
    return s


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
def _embed_forward_kernel(
    word_ptr,
    position_ptr,
    segment_ptr,
    input_ids_ptr,
    position_ids_ptr,
    segment_ids_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    seed_ptr,
    hidden,
    eps,
    threshold,
    keep_scale,
    POSITION: tl.constexpr,
    SEGMENT: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    inside = column < hidden
    real = inside[None, :]
    s = _load_embeddings(
        word_ptr, position_ptr, segment_ptr, input_ids_ptr, position_ids_ptr, segment_ids_ptr,
        token, hidden, column, real, POSITION, SEGMENT,
    )  # fmt: skip
    mean, rstd = moments(s, real, hidden, eps, False)
    out = (s - mean[:, None]) * rstd[:, None]
    out *= tl.load(weight_ptr + column, inside, 0.0).to(tl.float32)[None, :]
    if BIAS:
        out += tl.load(bias_ptr + column, inside, 0.0).to(tl.float32)[None, :]
    first = token.to(tl.int64) * hidden + tl.zeros((1,), tl.int64)
    if DROPOUT:
        kept = flat_lanes(tl.load(seed_ptr), first, COLUMNS, ALIGNED).to(tl.int32) >= threshold
        out = tl.where(kept, out * keep_scale, 0.0)
    tl.store(out_ptr + first[:, None] + column[None, :], out.to(out_ptr.dtype.element_ty), real)
    tl.store(mean_ptr + token + tl.arange(0, 1), mean)
    tl.store(rstd_ptr + token + tl.arange(0, 1), rstd)


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
def _embed_backward_kernel(
    dout_ptr,
    word_ptr,
    position_ptr,
    segment_ptr,
    input_ids_ptr,
    position_ids_ptr,
    segment_ids_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dsum_ptr,
    partial_ptr,
    seed_ptr,
    tokens,
    hidden,
    threshold,
    keep_scale,
    POSITION: tl.constexpr,
    SEGMENT: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of every PROGRAMS-th token's sum, and this program's part of the sums for the
    weight and the bias.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)
    inside = column < hidden
    real = inside[None, :]
    weight = tl.load(weight_ptr + column, inside, 0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((1, COLUMNS), tl.float32)
    dbias = tl.zeros((1, COLUMNS), tl.float32)
    for token in range(program, tokens, programs):
        s = _load_embeddings(
            word_ptr, position_ptr, segment_ptr, input_ids_ptr, position_ids_ptr, segment_ids_ptr,
            token, hidden, column, real, POSITION, SEGMENT,
        )  # fmt: skip
        mean, rstd = (
            tl.load(mean_ptr + token + tl.arange(0, 1)),
            tl.load(rstd_ptr + token + tl.arange(0, 1)),
        )
        normal = tl.where(real, (s - mean[:, None]) * rstd[:, None], 0.0)
        first = tl.zeros((1,), tl.int64) + token * hidden.to(tl.int64)
        dy = tl.load(dout_ptr + first[:, None] + column[None, :], real, 0.0).to(tl.float32)
        if DROPOUT:
            kept = flat_lanes(tl.load(seed_ptr), first, COLUMNS, ALIGNED).to(tl.int32) >= threshold
            dy = tl.where(kept, dy * keep_scale, 0.0)
        dweight += dy * normal
        dbias += dy
        ds = norm_backward(normal, dy, weight, rstd, hidden, False)
        tl.store(dsum_ptr + first[:, None] + column[None, :], ds, real)
    place = partial_ptr + program * 2 * hidden + column[None, :]
    tl.store(place, dweight, real)
    tl.store(place + hidden, dbias, real)


@triton.jit
def _sum_runs_kernel(
    rows_ptr, order_ptr, ids_ptr, runs_ptr, count, hidden, RUN: tl.constexpr, COLUMNS: tl.constexpr
):
    """runs[i] = the sum of the rows of one id from sorted place i to the end of its block of RUN
    places; where i starts such a run.
    """
    place = tl.program_id(0)
    own = tl.load(ids_ptr + place)
    if place % RUN != 0 and tl.load(ids_ptr + tl.maximum(place - 1, 0)) == own:
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    end = tl.minimum((place // RUN + 1) * RUN, count)
    at = place
    same = True
    while same:
        row = tl.load(order_ptr + at) * hidden
        total += tl.load(rows_ptr + row + column, column < hidden, 0.0)
        at += 1
        same = at < end
        if same:
            same = tl.load(ids_ptr + at) == own
    tl.store(runs_ptr + place.to(tl.int64) * hidden + column, total, column < hidden)


@triton.jit
def _add_runs_kernel(
    runs_ptr, ids_ptr, out_ptr, count, hidden, RUN: tl.constexpr, COLUMNS: tl.constexpr
):
    """out[id] = the sum of the id's runs, in order; by the program at the id's first place."""
    place = tl.program_id(0)
    own = tl.load(ids_ptr + place)
    if place != 0 and tl.load(ids_ptr + tl.maximum(place - 1, 0)) == own:
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    at = place
    same = True
    while same:
        total += tl.load(runs_ptr + at.to(tl.int64) * hidden + column, column < hidden, 0.0)
        at = (at // RUN + 1) * RUN
        same = at < count
        if same:
            same = tl.load(ids_ptr + at) == own
    tl.store(out_ptr + own * hidden + column, total.to(out_ptr.dtype.element_ty), column < hidden)


def _forward_triton(
    tables: list[Tensor | None],
    ids: list[Tensor | None],
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    eps: float,
    threshold: int,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    tokens, hidden = out.shape
    if tokens:
        launch(
            _embed_forward_kernel, (tokens,),
            *_or_first(tables), *_or_first(ids), *_or_first([weight, bias]), out, mean, rstd, seed,
            hidden, eps, threshold,
            keep_scale(threshold), BIAS=bias is not None, **_constants(tables, hidden, threshold),
        )  # fmt: skip


def _backward_triton(
    dout: Tensor,
    tables: list[Tensor | None],
    ids: list[Tensor | None],
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor,
    threshold: int,
    dsum: Tensor,
) -> Tensor:
    """Returns the gradients of weight and bias, (2, hidden) float32."""
    tokens, hidden = dout.shape
    partial = torch.empty(min(tokens, PROGRAMS), 2, hidden, device=dout.device)
    if tokens:
        launch(
            _embed_backward_kernel, (partial.shape[0],),
            dout, *_or_first(tables), *_or_first(ids), weight, mean, rstd, dsum, partial, seed,
            tokens, hidden, threshold,
            keep_scale(threshold), **_constants(tables, hidden, threshold),
        )  # fmt: skip
    return partial.sum(0)


def _sum_rows_triton(rows: Tensor, order: Tensor, ids: Tensor, out: Tensor) -> None:
    count, hidden = rows.shape
    if count:
        runs = torch.empty_like(rows)
        grid = (count, triton.cdiv(hidden, COLUMNS))
        launch(
            _sum_runs_kernel, grid, rows, order, ids, runs, count, hidden, RUN=RUN, COLUMNS=COLUMNS
        )
        launch(_add_runs_kernel, grid, runs, ids, out, count, hidden, RUN=RUN, COLUMNS=COLUMNS)


def _or_first(tensors: list[Tensor | None]) -> list[Tensor]:
    """A kernel takes every pointer; one that it does not read may be any."""
    assert tensors[0] is not None
    return [tensors[0] if x is None else x for x in tensors]


def _constants(tables: list[Tensor | None], hidden: int, threshold: int) -> dict[str, int]:
    columns = padded_width(hidden)
    return {
        "POSITION": tables[1] is not None,
        "SEGMENT": tables[2] is not None,
        "DROPOUT": threshold > 0,
        "ALIGNED": hidden % 8 == 0,
        "COLUMNS": columns,
        "num_warps": max(4, min(16, columns // 512)),
    }


# --- torch.library ---


@torch.library.custom_op("bertfast::embed", mutates_args=())
def _embed(
    input_ids: Tensor,
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor | None,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    eps: float,
    threshold: int,
    padding_idx: int,
    sparse_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tables, ids = (
        _contiguous(word, position, segment),
        _contiguous(input_ids, position_ids, segment_ids),
    )
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    out, mean, rstd = _outputs(input_ids, word)
    if backend == "cpp":
        weight, bias = weight.float(), None if bias is None else bias.float()
        dispatch._C.embed_forward(
            **_named(tables, ids),
            weight=weight,
            bias=bias,
            out=out,
            mean=mean,
            rstd=rstd,
            eps=eps,
            threshold=threshold,
            seed=int(seed),
            threads=num_threads(),
        )
    else:
        _check_launch(backend, tables, ids, weight, threshold, seed)
        if bias is not None:
            check_norm(weight, bias, word)
        _forward_triton(tables, ids, weight, bias, seed, eps, threshold, out, mean, rstd)
    return out, mean, rstd


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _check_launch(
    backend: str,
    tables: list[Tensor | None],
    ids: list[Tensor | None],
    weight: Tensor,
    threshold: int,
    seed: Tensor,
) -> None:
    _check_tables(tables, ids)
    word = tables[0]
    assert word is not None
    check_launch("embed", backend, word)
    check_norm(weight, None, word)
    check_dropout(threshold, seed, word)


def _named(tables: list[Tensor | None], ids: list[Tensor | None]) -> dict[str, Tensor | None]:
    """The tables and their ids as the C++ extension names them."""
    names = ("word", "position", "segment", "input_ids", "position_ids", "segment_ids")
    return dict(zip(names, [*tables, *ids], strict=True))


def _outputs(input_ids: Tensor, word: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (word.new_empty(input_ids.shape[0], dtype=torch.float32) for _ in range(2))
    return word.new_empty(input_ids.shape[0], word.shape[1]), mean, rstd


@torch.library.custom_op("bertfast::embed_backward", mutates_args=())
def _embed_backward(
    dout: Tensor,
    input_ids: Tensor,
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor | None,
    segment: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor,
    threshold: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dout, mean, rstd = dout.contiguous(), mean.contiguous(), rstd.contiguous()
    tables, ids = (
        _contiguous(word, position, segment),
        _contiguous(input_ids, position_ids, segment_ids),
    )
    dsum, dparameters = _gradients(dout)
    if backend == "cpp":
        weight = weight.float().contiguous()
        dispatch._C.embed_backward(
            dout=dout,
            **_named(tables, ids),
            weight=weight,
            mean=mean,
            rstd=rstd,
            dsum=dsum,
            dparameters=dparameters,
            threshold=threshold,
            seed=int(seed),
            threads=num_threads(),
        )
    else:
        _check_launch(backend, tables, ids, weight, threshold, seed)
        rows = input_ids.shape
        check_launch(
            "embed",
            backend,
            word,
            dout=(dout, word.dtype, (*rows, word.shape[1])),
            mean=(mean, torch.float32, rows),
            rstd=(rstd, torch.float32, rows),
        )
        dparameters = _backward_triton(
            dout, tables, ids, weight.contiguous(), mean, rstd, seed, threshold, dsum
        )
    return dsum, dparameters


def _gradients(dout: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the sum of embeddings, (tokens, hidden), and of weight and bias, (2, hidden), both
    float32.
    """
    return dout.new_empty(dout.shape, dtype=torch.float32), dout.new_empty(
        2, dout.shape[1], dtype=torch.float32
    )


@torch.library.custom_op("bertfast::sum_rows", mutates_args=())
def _sum_rows(rows: Tensor, ids: Tensor, size: int, dtype: torch.dtype, backend: str) -> Tensor:
    """(size, hidden): row i is the sum, in order, of the rows (count, hidden) float32 whose id is
    i.
    """
    out = torch.zeros(size, rows.shape[1], dtype=dtype, device=rows.device)
    rows, (ordered, order) = rows.contiguous(), ids.sort(stable=True)
    if backend == "cpp":
        targets, lengths = ordered.unique_consecutive(return_counts=True)
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        dispatch._C.sum_row_groups(
            rows=rows,
            order=order,
            starts=starts,
            targets=targets,
            out=out,
            threads=num_threads(),
        )
    else:
        check_launch("embed", backend, rows, ids=(ids, torch.int64, rows.shape[:1]))
        check_dims("rows", rows, ("count", "hidden"))
        check_ids("ids", ids, "the result", size)
        _sum_rows_triton(rows, order, ordered, out)
    return out


@register_fake(_embed)
def _(
    input_ids, position_ids, segment_ids, word, position, segment, weight, bias, seed, eps,
    threshold, padding_idx, sparse_grad, backend
):  # fmt: skip
    return _outputs(input_ids, word)


@register_fake(_embed_backward)
def _(
    dout,
    input_ids,
    position_ids,
    segment_ids,
    word,
    position,
    segment,
    weight,
    mean,
    rstd,
    seed,
    threshold,
    backend,
):
    return _gradients(dout)


@register_fake(_sum_rows)
def _(rows, ids, size, dtype, backend):
    return rows.new_empty(size, rows.shape[1], dtype=dtype)


def _setup(ctx, inputs, output) -> None:
    *tensors, _, ctx.threshold, ctx.padding_idx, ctx.sparse_grad, ctx.backend = inputs
    _, mean, rstd = output
    ctx.save_for_backward(*tensors, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx, dout, *_):
    *ids_and_tables, weight, bias, seed, mean, rstd = ctx.saved_tensors
    dsum, dparameters = _embed_backward(
        dout, *ids_and_tables, weight, mean, rstd, seed, ctx.threshold, ctx.backend
    )
    gradients: list[Tensor | None] = []
    for number, (ids, table) in enumerate(zip(ids_and_tables[:3], ids_and_tables[3:], strict=True)):
        if table is None or not ctx.needs_input_grad[3 + number]:
            gradients.append(None)
            continue
        padding_idx, sparse = (ctx.padding_idx, ctx.sparse_grad) if number == 0 else (-1, False)
        gradients.append(_table_gradient(dsum, ids, table, padding_idx, sparse, ctx.backend))
    dbias = None if bias is None else dparameters[1].to(bias.dtype)
    return None, None, None, *gradients, dparameters[0].to(weight.dtype), dbias, *(None,) * 6


def _table_gradient(
    rows: Tensor, ids: Tensor, table: Tensor, padding_idx: int, sparse: bool, backend: str
) -> Tensor:
    """The sums of rows by id, none for padding_idx (-1: no such id); as a sparse tensor of the ids
    that there are, if wanted.
    """
    if not sparse:
        gradient = _sum_rows(rows, ids, table.shape[0], table.dtype, backend)
        if padding_idx >= 0:
            gradient[padding_idx].zero_()
        return gradient
    present, places = ids.unique(return_inverse=True)
    values = _sum_rows(rows, places, present.shape[0], table.dtype, backend)
    values[present == padding_idx] = 0
    return torch.sparse_coo_tensor(
        present[None], values, table.shape, is_coalesced=True, check_invariants=False
    )


_embed.register_autograd(_backward, setup_context=_setup)


def embed(
    input_ids: Tensor,
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor | None,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    padding_idx: int | None = None,
    sparse_grad: bool = False,
) -> Tensor:
    """``dropout(LayerNorm(word[input_ids] + position[position_ids] + segment[segment_ids]))``.

    Args:
        input_ids: (tokens,) int64.
        position_ids, segment_ids: (tokens,) int64, or None, each with its table.
        word: (vocab, hidden), floating point.
        position, segment: (size, hidden) of word's dtype, or None for no such table.
        weight: (hidden,) of the LayerNorm, of any floating dtype.
        bias: (hidden,) of weight's dtype, or None for none.
        eps: added to the variance.
        dropout_p: of the result, in [0, 1), rounded to a multiple of 1/65536.
        seed: of the dropout, an int of 64 bits or an int64 tensor of one element; the bits are
            those of `kernels.dropout`.
        padding_idx: a row of the word table that takes no gradient, as in `torch.nn.Embedding`.
        sparse_grad: the word table's gradient is a sparse tensor of the rows that occur. Autograd
            adds it in place to a dense gradient of the same table (from a tied output layer), which
            spares a pass over the vocabulary; alone it is what ``sparse=True`` of
            `torch.nn.functional.embedding` gives, which few optimizers take.

    Returns:
        (tokens, hidden), contiguous, of word's dtype.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device or option that does not fit; on the CPU an id beyond its table
            (on a GPU values are not read).
        BackendError: the forced backend cannot serve the call.
    """
    _check_tables([word, position, segment], [input_ids, position_ids, segment_ids])
    check_norm(weight, bias, word)
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it must be at least 0")
    if padding_idx is not None and not 0 <= padding_idx < word.shape[0]:
        raise ValueError(
            f"padding_idx is {padding_idx}; word has {word.shape[0]} rows, "
            f"so it must be from 0 to {word.shape[0] - 1}"
        )
    threshold = dropout_threshold(dropout_p)
    seed = as_seed(seed, word.device)
    padding = -1 if padding_idx is None else padding_idx
    arguments = (
        input_ids,
        position_ids,
        segment_ids,
        word,
        position,
        segment,
        weight,
        bias,
        seed,
        eps,
        threshold,
    )
    backend = dispatch.select("embed", word.device, word.dtype)
    if backend == "reference":
        return reference.embed(*arguments, padding_idx, sparse_grad)
    return _embed(*arguments, padding, sparse_grad, backend)[0]


def _check_tables(tables: list[Tensor | None], ids: list[Tensor | None]) -> None:
    word, input_ids = tables[0], ids[0]
    check_integers("input_ids", input_ids, ("tokens",), torch.int64)
    check_tensor("word", word, ("vocab", "hidden"))
    assert word is not None
    assert input_ids is not None
    if word.shape[1] == 0:
        raise ValueError("word has no columns; it must have at least one")
    for kind, own, table in zip(("input", "position", "segment"), ids, tables, strict=True):
        if (own is None) != (table is None):
            raise ValueError(f"{kind}_ids and the {kind} table go together; one is None")
        if own is not None and table is not None:
            _check_table(kind, own, table, input_ids, word)


def _check_table(kind: str, ids: Tensor, table: Tensor, input_ids: Tensor, word: Tensor) -> None:
    name = "word" if table is word else kind
    check_integers(f"{kind}_ids", ids, ("tokens",), torch.int64)
    check_device(f"{kind}_ids", ids, "word", word)
    if ids.shape != input_ids.shape:
        raise ValueError(
            f"{kind}_ids has {ids.shape[0]} entries and input_ids {input_ids.shape[0]}; "
            "they must be the same"
        )
    check_tensor(name, table, ("size", "hidden"))
    check_like(name, table, "word", word)
    if table.shape[1] != word.shape[1]:
        raise ValueError(
            f"{name} has {table.shape[1]} columns and word {word.shape[1]}; they must be the same"
        )
    check_ids(f"{kind}_ids", ids, name, table.shape[0])
