"""The list of a batch's blocks, made on the device, the longest sequences first.

A grid of the longest sequence's blocks for every sequence would be empty for the most part. At real
lengths up to 512 three fifths of its programs would find nothing to do. The list has an entry for
each block that there is. What the host knows, the tokens and the sequences, bounds its size, so
that nothing waits for the device. Entries past the last block lead to no token. The longest
sequences come first, so that the last programs to run are short ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..launch import launch
from ..triton_compat import tl, triton

# Positions of an entry; a kernel of smaller blocks has several programs for each.
TILE = tl.constexpr(128)
# Sequences are ordered by length to within a part of the longest one: a program lists those of one.
CLASSES = tl.constexpr(8)


@triton.jit(do_not_specialize=("sequences", "entries", "max_tiles"))
def _tile_list_kernel(cu_ptr, list_ptr, sequences, entries, max_tiles, CHUNK: tl.constexpr):
    """The entries (sequence, first position) of the sequences of one class of lengths."""
    mine = CLASSES - 1 - tl.program_id(0)
    before = 0
    for first in range(0, sequences, CHUNK):
        _, tiles, kind = _classes(cu_ptr, first, sequences, max_tiles, CHUNK)
        before += tl.sum(tl.where(kind > mine, tiles, 0))
    for first in range(0, sequences, CHUNK):
        sequence, tiles, kind = _classes(cu_ptr, first, sequences, max_tiles, CHUNK)
        tiles = tl.where(kind == mine, tiles, 0)
        end = before + tl.cumsum(tiles, 0)
        for tile in range(tl.max(tiles)):
            entry = list_ptr + 2 * (end - tiles + tile)
            tl.store(entry, sequence, tile < tiles)
            tl.store(entry + 1, tile * TILE, tile < tiles)
        before += tl.sum(tiles)
    if mine == 0:
        # A position past the end of every sequence.
        for first in range(before, entries, CHUNK):
            entry = first + tl.arange(0, CHUNK)
            tl.store(list_ptr + 2 * entry, 0, entry < entries)
            tl.store(list_ptr + 2 * entry + 1, max_tiles * TILE, entry < entries)


@triton.jit
def _classes(cu_ptr, first, sequences, max_tiles, CHUNK: tl.constexpr):
    """Sequences from ``first`` on, their tiles and their classes; a class of -1 has no tile."""
    sequence = first + tl.arange(0, CHUNK)
    inside = sequence < sequences
    begin = tl.load(cu_ptr + sequence, inside, 0)
    length = tl.load(cu_ptr + sequence + 1, inside, 0) - begin
    tiles = (length + TILE - 1) // TILE
    return sequence, tiles, (tiles * CLASSES + max_tiles - 1) // max_tiles - 1


def tile_list(cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> Tensor:
    """(entries, 2) int32: each block's sequence and first position."""
    sequences, max_tiles = cu_seqlens.shape[0] - 1, triton.cdiv(max_seqlen, TILE.value)
    entries = list_size(cu_seqlens, tokens, max_seqlen)
    listed = torch.empty(entries, 2, dtype=torch.int32, device=cu_seqlens.device)
    if entries:
        launch(
            _tile_list_kernel, (CLASSES.value,), cu_seqlens, listed, sequences, entries, max_tiles,
            CHUNK=1024,
        )  # fmt: skip
    return listed


def list_size(cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> int:
    """Entries of the list: no fewer than the blocks that there can be."""
    sequences, size = cu_seqlens.shape[0] - 1, TILE.value
    return min(-(-max_seqlen // size) * sequences, tokens // size + sequences)


def tile_grid(listed: Tensor, heads: int, block: int) -> tuple[int, int]:
    """The grid of a kernel whose programs take a head of ``block`` positions of an entry."""
    return listed.shape[0] * TILE.value // block, heads
