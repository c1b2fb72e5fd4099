"""The embedding layer: ``out = dropout(LayerNorm(word[input_ids] + position[position_ids] +
segment[segment_ids]))``.

ids (tokens,), tables (size, hidden), out (tokens, hidden); position, segment and the norm's bias
are each optional. One pass gathers the rows, adds them and normalises the sum. The backward makes
the sum again and writes its gradient once, (tokens, hidden). A table's gradient is the sum of those
rows by id, in the order of the tokens:

- word: tokens are sorted by id, and one program adds up a group, or RUN tokens of a large one;
- position: sequences count up by one, so that which token stands where follows from cu_seqlens;
- segment: a table of two rows is summed beside the norm's parameters, a larger one as the words.

Nothing is added twice to one place, so no atomics are needed and the bits are the same each time.
With ``sparse_grad`` not even the word table's gradient stands in memory.

Source: Devlin et al., "BERT", section 3 and figure 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import (
    check_boundaries,
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
from .layer_norm_triton import (
    load_columns,
    moments,
    norm_backward,
    padded_width,
    row_pieces,
    sum_partials,
)
from .philox import as_seed, dropout_threshold, keep_scale
from .philox_triton import flat_lanes
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---

PROGRAMS = 512  # of a backward, each with its own sums over its tokens
SEGMENTS = 2  # rows of a segment table whose gradient the backward's programs can add up
RUN = (
    16  # sorted tokens whose rows one program adds up at most, before the runs of one id are added
)
SEQUENCES = 8  # whose rows at a position one program adds up at once
SCAN = 128  # ids that a program looks through at once
COLUMNS = 256


@triton.jit
def _load_ids(
    input_ids_ptr, position_ids_ptr, segment_ids_ptr, token, tokens,
    POSITION: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """The rows of the three tables for each token, 0 for an absent table."""
    word = tl.load(input_ids_ptr + token, token < tokens, 0)
    position, segment = word * 0, word * 0
    if POSITION:
        position = tl.load(position_ids_ptr + token, token < tokens, 0)
    if SEGMENT:
        segment = tl.load(segment_ids_ptr + token, token < tokens, 0)
    return word, position, segment


@triton.jit
def _load_embeddings(
    word_ptr, position_ptr, segment_ptr, ids, column, real, hidden,
    POSITION: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """A tile of the sum of tokens' rows, (ROWS, COLUMNS) float32."""
    word, position, segment = ids
    s = tl.load(word_ptr + word[:, None] * hidden + column[None, :], real, 0.0).to(tl.float32)
    if POSITION:
        places = position[:, None] * hidden + column[None, :]
        s += tl.load(position_ptr + places, real, 0.0).to(tl.float32)
    if SEGMENT:
        places = segment[:, None] * hidden + column[None, :]
        s += tl.load(segment_ptr + places, real, 0.0).to(tl.float32)
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
    tokens,
    hidden,
    eps,
    threshold,
    keep_scale,
    POSITION: tl.constexpr,
    SEGMENT: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ids = _load_ids(
        input_ids_ptr, position_ids_ptr, segment_ids_ptr, token, tokens, POSITION, SEGMENT
    )
    s, column, inside = (), (), ()
    for i in tl.static_range(PIECES):
        column += (i * COLUMNS + tl.arange(0, COLUMNS),)
        inside += (column[i] < hidden,)
        real = (token < tokens)[:, None] & inside[i][None, :]
        s += (
            _load_embeddings(
                word_ptr, position_ptr, segment_ptr, ids, column[i], real, hidden, POSITION, SEGMENT
            ),
        )
    mean, rstd = moments(s, inside, hidden, eps, False, PIECES)
    first = token.to(tl.int64) * hidden
    seed = tl.load(seed_ptr)
    for i in tl.static_range(PIECES):
        real = (token < tokens)[:, None] & inside[i][None, :]
        out = (s[i] - mean[:, None]) * rstd[:, None]
        out *= load_columns(weight_ptr, column[i], inside[i], ROWS)
        if BIAS:
            out += load_columns(bias_ptr, column[i], inside[i], ROWS)
        if DROPOUT:
            lanes = flat_lanes(seed, first + i * COLUMNS, COLUMNS, ALIGNED)
            out = tl.where(lanes.to(tl.int32) >= threshold, out * keep_scale, 0.0)
        place = out_ptr + first[:, None] + column[i][None, :]
        tl.store(place, out.to(out_ptr.dtype.element_ty), real)
    tl.store(mean_ptr + token, mean, token < tokens)
    tl.store(rstd_ptr + token, rstd, token < tokens)


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
    SEGMENTS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of the sums for a share of the tokens, and this program's part of the column
    sums. These are for the weight, the bias and the SEGMENTS rows of the segment table. A program
    takes ROWS tokens at a time.
    """
    seed = tl.load(seed_ptr)
    column, inside, dweight, dbias, dsegment = (), (), (), (), ()
    for i in tl.static_range(PIECES):
        column += (i * COLUMNS + tl.arange(0, COLUMNS),)
        inside += (column[i] < hidden,)
        dweight += (tl.zeros((ROWS, COLUMNS), tl.float32),)
        dbias += (tl.zeros((ROWS, COLUMNS), tl.float32),)
        for _ in tl.static_range(SEGMENTS):
            dsegment += (tl.zeros((ROWS, COLUMNS), tl.float32),)
    for start in range(tl.program_id(0) * ROWS, tokens, tl.num_programs(0) * ROWS):
        token = start + tl.arange(0, ROWS)
        ids = _load_ids(
            input_ids_ptr, position_ids_ptr, segment_ids_ptr, token, tokens, POSITION, SEGMENT
        )
        first = token.to(tl.int64) * hidden
        mean = tl.load(mean_ptr + token, token < tokens, 0.0)
        rstd = tl.load(rstd_ptr + token, token < tokens, 0.0)
        normal, dy, dweight_now, dbias_now, dsegment_now = (), (), (), (), ()
        for i in tl.static_range(PIECES):
            real = (token < tokens)[:, None] & inside[i][None, :]
            s = _load_embeddings(
                word_ptr, position_ptr, segment_ptr, ids, column[i], real, hidden, POSITION, SEGMENT
            )
            normal += (tl.where(real, (s - mean[:, None]) * rstd[:, None], 0.0),)
            part = tl.load(dout_ptr + first[:, None] + column[i][None, :], real, 0.0).to(tl.float32)
            if DROPOUT:
                lanes = flat_lanes(seed, first + i * COLUMNS, COLUMNS, ALIGNED)
                part = tl.where(lanes.to(tl.int32) >= threshold, part * keep_scale, 0.0)
            dy += (part,)
            dweight_now += (dweight[i] + part * normal[i],)
            dbias_now += (dbias[i] + part,)
        ds = norm_backward(normal, dy, weight_ptr, column, inside, rstd, hidden, False, PIECES)
        for i in tl.static_range(PIECES):
            real = (token < tokens)[:, None] & inside[i][None, :]
            place = dsum_ptr + first[:, None] + column[i][None, :]
            tl.store(place, ds[i].to(dsum_ptr.dtype.element_ty), real)
            for k in tl.static_range(SEGMENTS):
                own = tl.where((ids[2] == k)[:, None], ds[i], 0.0)
                dsegment_now += (dsegment[i * SEGMENTS + k] + own,)
        dweight, dbias = dweight_now, dbias_now
        if SEGMENTS > 0:
            dsegment = dsegment_now
    place = partial_ptr + tl.program_id(0) * (2 + SEGMENTS) * hidden
    for i in tl.static_range(PIECES):
        tl.store(place + column[i], tl.sum(dweight[i], 0), inside[i])
        tl.store(place + hidden + column[i], tl.sum(dbias[i], 0), inside[i])
        for k in tl.static_range(SEGMENTS):
            total = tl.sum(dsegment[i * SEGMENTS + k], 0)
            tl.store(place + (2 + k) * hidden + column[i], total, inside[i])


@triton.jit
def _sum_runs_kernel(
    rows_ptr,
    order_ptr,
    ids_ptr,
    runs_ptr,
    out_ptr,
    count,
    hidden,
    padding_idx,
    RUN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums of the rows of one id within each block of RUN sorted places.

    Where a run of an id starts at sorted place i, its sum up to the end of the block goes to
    runs[i]. If the id has no other run, the sum goes to out[id].
    """
    place = tl.program_id(0)
    own = tl.load(ids_ptr + place)
    begins = (place == 0) | (tl.load(ids_ptr + tl.maximum(place - 1, 0)) != own)
    if place % RUN != 0 and not begins:
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < hidden
    end = tl.minimum((place // RUN + 1) * RUN, count)
    at = place + tl.arange(0, RUN)
    same = (tl.load(ids_ptr + at, at < end, -1) == own) & (at < end)
    row = tl.load(order_ptr + at, same, 0) * hidden
    part = tl.load(rows_ptr + row[:, None] + column[None, :], same[:, None] & inside[None, :], 0.0)
    total = tl.sum(part.to(tl.float32), 0)
    ends = (end >= count) | (tl.load(ids_ptr + tl.minimum(end, count - 1)) != own)
    if begins & ends:
        wanted = inside & (own.to(tl.int64) != padding_idx)
        target = out_ptr + own.to(tl.int64) * hidden + column
        tl.store(target, total.to(out_ptr.dtype.element_ty), wanted)
    else:
        tl.store(runs_ptr + place.to(tl.int64) * hidden + column, total, inside)


@triton.jit
def _add_runs_kernel(
    runs_ptr,
    ids_ptr,
    out_ptr,
    count,
    hidden,
    padding_idx,
    RUN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[id] = the sum of the id's runs, in order, where it has several; by the program at its
    first place.
    """
    place = tl.program_id(0)
    own = tl.load(ids_ptr + place)
    block = place // RUN + 1
    begins = (place == 0) | (tl.load(ids_ptr + tl.maximum(place - 1, 0)) != own)
    ends = (block * RUN >= count) | (tl.load(ids_ptr + tl.minimum(block * RUN, count - 1)) != own)
    if ends or not begins:
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < hidden
    total = tl.load(runs_ptr + place.to(tl.int64) * hidden + column, inside, 0.0)
    more = True
    while more:
        at = (block + tl.arange(0, RUN)) * RUN
        same = (tl.load(ids_ptr + at, at < count, -1) == own) & (at < count)
        places = at.to(tl.int64)[:, None] * hidden + column[None, :]
        total += tl.sum(tl.load(runs_ptr + places, same[:, None] & inside[None, :], 0.0), 0)
        block += RUN
        more = tl.sum(same.to(tl.int32), 0) == RUN
    target = out_ptr + own.to(tl.int64) * hidden + column
    wanted = inside & (own.to(tl.int64) != padding_idx)
    tl.store(target, total.to(out_ptr.dtype.element_ty), wanted)


@triton.jit
def _find_gaps_kernel(ids_ptr, cu_ptr, gaps_ptr, sequences, tokens, SCAN: tl.constexpr):
    """gaps[b] = whether the ids of sequence b do other than count up by one; the tokens past the
    last sequence are one more.
    """
    b = tl.program_id(0)
    start = tl.load(cu_ptr + b)
    end = tokens
    if b < sequences:
        end = tl.load(cu_ptr + b + 1)
    gaps = tl.zeros((SCAN,), tl.int32)
    for first in range(start, end - 1, SCAN):
        at = first + tl.arange(0, SCAN)
        real = at < end - 1
        step = tl.load(ids_ptr + at + 1, real, 1) - tl.load(ids_ptr + at, real, 0)
        gaps += (real & (step != 1)).to(tl.int32)
    tl.store(gaps_ptr + b, (tl.sum(gaps, 0) > 0).to(tl.int32))


@triton.jit
def _sum_positions_kernel(
    rows_ptr,
    ids_ptr,
    cu_ptr,
    gaps_ptr,
    out_ptr,
    sequences,
    tokens,
    hidden,
    padding_idx,
    SEQUENCES: tl.constexpr,
    SCAN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[position] = the sum of the rows of the tokens that stand there, sequence by sequence.

    Where a sequence's ids count up, its row is known from its first id; another one is looked
    through.
    """
    position = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < hidden
    total = tl.zeros((SEQUENCES, COLUMNS), tl.float32)
    if position != padding_idx:
        for first in range(0, sequences + 1, SEQUENCES):
            b = first + tl.arange(0, SEQUENCES)
            start = tl.load(cu_ptr + b, b <= sequences, 0)
            end = tl.where(b == sequences, tokens, tl.load(cu_ptr + b + 1, b < sequences, 0))
            gaps = tl.load(gaps_ptr + b, b <= sequences, 0)
            token = start + position - tl.load(ids_ptr + start, start < end, 0).to(tl.int32)
            found = (token >= start) & (token < end) & (gaps == 0)
            places = token.to(tl.int64)[:, None] * hidden + column[None, :]
            part = tl.load(rows_ptr + places, found[:, None] & inside[None, :], 0.0)
            total += part.to(tl.float32)
            if tl.sum(gaps, 0) > 0:
                for own in range(first, tl.minimum(first + SEQUENCES, sequences + 1)):
                    if tl.load(gaps_ptr + own) > 0:
                        last = tokens
                        if own < sequences:
                            last = tl.load(cu_ptr + own + 1)
                        for scanned in range(tl.load(cu_ptr + own), last, SCAN):
                            at = scanned + tl.arange(0, SCAN)
                            ids = tl.load(ids_ptr + at, at < last, -1)
                            if tl.sum((ids == position).to(tl.int32), 0) > 0:
                                for near in range(scanned, scanned + SCAN, SEQUENCES):
                                    token = near + tl.arange(0, SEQUENCES)
                                    here = tl.load(ids_ptr + token, token < last, -1) == position
                                    places = token.to(tl.int64)[:, None] * hidden + column[None, :]
                                    real = here[:, None] & inside[None, :]
                                    part = tl.load(rows_ptr + places, real, 0.0)
                                    total += part.to(tl.float32)
    target = out_ptr + position.to(tl.int64) * hidden + column
    tl.store(target, tl.sum(total, 0).to(out_ptr.dtype.element_ty), inside)


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
        constants = _constants(tables, hidden, threshold)
        launch(
            _embed_forward_kernel, (triton.cdiv(tokens, constants["ROWS"]),),
            *_or_first(tables), *_or_first(ids), *_or_first([weight, bias]), out, mean, rstd, seed,
            tokens, hidden, eps, threshold,
            keep_scale(threshold), BIAS=bias is not None, **constants,
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
    segments: int,
    dsum: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Returns the gradients of weight, bias and ``segments`` rows of the segment table, (2 +
    segments, hidden) of ``dtype``.
    """
    tokens, hidden = dout.shape
    constants = _constants(tables, hidden, threshold)
    programs = min(triton.cdiv(tokens, constants["ROWS"]), PROGRAMS)
    partial = torch.empty(programs, 2 + segments, hidden, device=dout.device)
    if tokens:
        launch(
            _embed_backward_kernel, (programs,),
            dout, *_or_first(tables), *_or_first(ids), weight, mean, rstd, dsum, partial, seed,
            tokens, hidden, threshold,
            keep_scale(threshold), SEGMENTS=segments, **constants,
        )  # fmt: skip
    return sum_partials(partial, dtype)


def _sum_rows_triton(rows: Tensor, ids: Tensor, padding_idx: int, out: Tensor) -> None:
    """Adds into zeros."""
    count, hidden = rows.shape
    if count:
        # A GPU's sort takes a pass for each byte of its keys.
        narrow = torch.int16 if out.shape[0] <= 2**15 else torch.int32
        ordered, order = ids.to(narrow if out.shape[0] <= 2**31 else ids.dtype).sort(stable=True)
        runs = torch.empty(count, hidden, device=rows.device)
        grid = (count, triton.cdiv(hidden, COLUMNS))
        tile = {"RUN": RUN, "COLUMNS": COLUMNS}
        sizes = (count, hidden, padding_idx)
        launch(_sum_runs_kernel, grid, rows, order, ordered, runs, out, *sizes, **tile)
        launch(_add_runs_kernel, grid, runs, ordered, out, *sizes, **tile)


def _sum_positions_triton(
    rows: Tensor, ids: Tensor, cu_seqlens: Tensor, padding_idx: int, out: Tensor
) -> None:
    """Writes each row of out."""
    sequences, (tokens, hidden) = cu_seqlens.shape[0] - 1, rows.shape
    if out.numel():
        gaps = torch.empty(sequences + 1, dtype=torch.int32, device=rows.device)
        sizes = (sequences, tokens)
        launch(_find_gaps_kernel, (sequences + 1,), ids, cu_seqlens, gaps, *sizes, SCAN=SCAN)
        launch(
            _sum_positions_kernel, (out.shape[0], triton.cdiv(hidden, COLUMNS)),
            rows, ids, cu_seqlens, gaps, out, *sizes, hidden, padding_idx,
            SEQUENCES=SEQUENCES, SCAN=SCAN, COLUMNS=COLUMNS,
        )  # fmt: skip


def _or_first(tensors: list[Tensor | None]) -> list[Tensor]:
    """A kernel takes every pointer; one that it does not read may be any."""
    assert tensors[0] is not None
    return [tensors[0] if x is None else x for x in tensors]


def _constants(tables: list[Tensor | None], hidden: int, threshold: int) -> dict[str, int]:
    return {
        "POSITION": tables[1] is not None,
        "SEGMENT": tables[2] is not None,
        "DROPOUT": threshold > 0,
        "ALIGNED": hidden % 8 == 0,
        **row_pieces(hidden),
        **_tile(hidden),
    }


def _tile(hidden: int) -> dict[str, int]:
    """Rows of a tile, and warps: 16 elements a thread, of which a backward keeps sums of four
    kinds.
    """
    padded = padded_width(hidden)
    return {"ROWS": max(1, min(8, 2048 // padded)), "num_warps": max(4, min(16, padded // 512))}


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
    position_padding_idx: int,
    cu_seqlens: Tensor | None,
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
    dsum = _gradient(dout, backend)
    if backend == "cpp":
        dparameters = dout.new_empty(2, dout.shape[1], dtype=torch.float32)
        dispatch._C.embed_backward(
            dout=dout,
            **_named(tables, ids),
            weight=weight.float().contiguous(),
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
            dout, tables, ids, weight.contiguous(), mean, rstd, seed, threshold,
            _segments_summed(segment, backend), dsum, _dtype_of_sums(weight, word, backend),
        )  # fmt: skip
    return dsum, dparameters


def _gradient(dout: Tensor, backend: str) -> Tensor:
    """That of the sum of embeddings, (tokens, hidden), to be written: float32 in C++."""
    return torch.empty_like(
        dout,
        dtype=torch.float32 if backend == "cpp" else dout.dtype,
        memory_format=torch.contiguous_format,
    )


def _segments_summed(segment: Tensor | None, backend: str) -> int:
    """How many rows of the segment table's gradient the backward's kernel adds up: all or none."""
    few = segment is not None and segment.shape[0] <= SEGMENTS and backend == "triton"
    return segment.shape[0] if few else 0  # type: ignore[union-attr]


def _dtype_of_sums(weight: Tensor, word: Tensor, backend: str) -> torch.dtype:
    """Of the sums over tokens: what all that they are of have in common, or else float32."""
    same = weight.dtype == word.dtype and backend == "triton"
    return word.dtype if same else torch.float32


@torch.library.custom_op("bertfast::sum_rows", mutates_args=())
def _sum_rows(
    rows: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor | None,
    size: int,
    padding_idx: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """(size, hidden): row i is the sum, in order, of the rows (count, hidden) whose id is i; zeros
    for padding_idx (-1: no such id). In C++ the rows are float32.

    With cu_seqlens, as of `embed`, Triton does not sort.
    """
    shape = (size, rows.shape[1])
    rows, ids = rows.contiguous(), ids.contiguous()
    if backend == "cpp":
        out = rows.new_zeros(shape, dtype=dtype)
        ordered, order = ids.sort(stable=True)
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
        if 0 <= padding_idx < size:
            out[padding_idx].zero_()
    else:
        check_launch("embed", backend, rows, ids=(ids, torch.int64, rows.shape[:1]))
        check_dims("rows", rows, ("count", "hidden"))
        check_ids("ids", ids, "the result", size)
        if cu_seqlens is None:
            out = rows.new_zeros(shape, dtype=dtype)
            _sum_rows_triton(rows, ids, padding_idx, out)
        else:
            check_boundaries(cu_seqlens, rows)
            out = rows.new_empty(shape, dtype=dtype)
            _sum_positions_triton(rows, ids, cu_seqlens.contiguous(), padding_idx, out)
    return out


@register_fake(_embed)
def _(
    input_ids, position_ids, segment_ids, word, position, segment, weight, bias, seed, eps,
    threshold, padding_idx, position_padding_idx, cu_seqlens, sparse_grad, backend
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
    sums = 2 + _segments_summed(segment, backend)
    dtype = _dtype_of_sums(weight, word, backend)
    return _gradient(dout, backend), dout.new_empty(sums, dout.shape[1], dtype=dtype)


@register_fake(_sum_rows)
def _(rows, ids, cu_seqlens, size, padding_idx, dtype, backend):
    return rows.new_empty(size, rows.shape[1], dtype=dtype)


def _setup(ctx, inputs, output) -> None:
    *tensors, _, ctx.threshold, ctx.padding_idx, ctx.position_padding_idx, cu_seqlens = inputs[:-2]
    ctx.sparse_grad, ctx.backend = inputs[-2:]
    _, mean, rstd = output
    ctx.save_for_backward(*tensors, cu_seqlens, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx, dout, *_):
    *ids_and_tables, weight, bias, seed, cu_seqlens, mean, rstd = ctx.saved_tensors
    dsum, sums = _embed_backward(
        dout, *ids_and_tables, weight, mean, rstd, seed, ctx.threshold, ctx.backend
    )
    (word_ids, position_ids, segment_ids), tables = ids_and_tables[:3], ids_and_tables[3:]

    def summed(number: int, ids: Tensor, boundaries: Tensor | None, padding_idx: int) -> Tensor:
        table = tables[number]
        return _sum_rows(
            dsum, ids, boundaries, table.shape[0], padding_idx, table.dtype, ctx.backend
        )

    gradients: list[Tensor | None] = [None] * 3
    wanted = [x is not None and ctx.needs_input_grad[3 + i] for i, x in enumerate(tables)]
    if wanted[0]:
        gradients[0] = (
            _sparse_gradient(dsum, word_ids, tables[0], ctx.padding_idx, ctx.backend)
            if ctx.sparse_grad
            else summed(0, word_ids, None, ctx.padding_idx)
        )
    if wanted[1]:
        gradients[1] = summed(1, position_ids, cu_seqlens, ctx.position_padding_idx)
    if wanted[2]:
        gradients[2] = (
            sums[2:].to(tables[2].dtype) if len(sums) > 2 else summed(2, segment_ids, None, -1)
        )
    dbias = None if bias is None else sums[1].to(bias.dtype)
    return None, None, None, *gradients, sums[0].to(weight.dtype), dbias, *(None,) * 8


def _sparse_gradient(
    rows: Tensor, ids: Tensor, table: Tensor, padding_idx: int, backend: str
) -> Tensor:
    """The sums of rows by id, of the ids that there are; zeros for padding_idx."""
    present, places = ids.unique(return_inverse=True)
    values = _sum_rows(rows, places, None, present.shape[0], -1, table.dtype, backend)
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
    position_padding_idx: int | None = None,
    cu_seqlens: Tensor | None = None,
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
        position_padding_idx: likewise one of the position table, which RoBERTa has.
        cu_seqlens: (sequences + 1,) int32, boundaries between which position_ids mostly count up by
            one. The position table's gradient is then made without a sort on a GPU; it is the same
            for any ids.
        sparse_grad: the word table's gradient is a sparse tensor of the rows that occur. Autograd
            adds it in place to a dense gradient of the same table (from a tied output layer), which
            spares a pass over the vocabulary. Alone it stays sparse, as ``sparse=True`` of
            `torch.nn.functional.embedding` gives it, and few optimizers take it.

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
    _check_padding("padding_idx", padding_idx, "word", word)
    _check_padding("position_padding_idx", position_padding_idx, "position", position)
    if cu_seqlens is not None:
        check_boundaries(cu_seqlens, input_ids)
    threshold = dropout_threshold(dropout_p)
    seed = as_seed(seed, word.device)
    padding = [-1 if row is None else row for row in (padding_idx, position_padding_idx)]
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
        return reference.embed(*arguments, padding_idx, position_padding_idx, sparse_grad)
    return _embed(*arguments, *padding, cu_seqlens, sparse_grad, backend)[0]


def _check_padding(name: str, row: int | None, table: str, x: Tensor | None) -> None:
    if row is None:
        return
    if x is None:
        raise ValueError(f"{name} is {row} and there is no {table} table; give None")
    if not 0 <= row < x.shape[0]:
        raise ValueError(
            f"{name} is {row}; {table} has {x.shape[0]} rows, "
            f"so it must be from 0 to {x.shape[0] - 1}"
        )


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
