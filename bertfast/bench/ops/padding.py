"""From the padded form to the packed one and back, against indexing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bertfast import kernels

from .. import floors
from ..case import Call, Case, Setup, Sides, differentiated


def pack(setup: Setup) -> Case:
    """(sequences, positions, hidden) to (tokens, hidden), forward and backward."""
    return _case("pack", setup)


def unpack(setup: Setup) -> Case:
    """(tokens, hidden) to (sequences, positions, hidden), zeros at the padding, forward and
    backward.
    """
    return _case("unpack", setup)


def _case(op: str, setup: Setup) -> Case:
    lengths, hidden = setup.lengths, setup.config.hidden_size
    shape = (len(lengths.values), lengths.longest)
    rows = lengths.rows(setup.device)
    padded, packed = (*shape, hidden), (lengths.tokens, hidden)
    x = setup.draw(*(padded if op == "pack" else packed))
    dout = setup.draw(*(packed if op == "pack" else padded)).detach()
    sides = Sides(setup)

    def run(forward: Callable) -> Call:
        return differentiated(forward, (x,), (dout,))

    def indexed(x: Tensor) -> Tensor:
        if op == "pack":
            return x.flatten(0, 1)[rows]
        return x.new_zeros(shape[0] * shape[1], hidden).index_copy(0, rows, x).unflatten(0, shape)

    ours = run(lambda x: kernels.pack(x, rows) if op == "pack" else kernels.unpack(x, rows, shape))
    sides.ours(op, ours, ours)
    sides.eager_and_compiled("x[rows]" if op == "pack" else "zeros + index_copy", run, indexed)
    floor = floors.padding(lengths.tokens, lengths.padded, hidden, setup.itemsize)
    sides.copies(floor)
    return Case(
        op,
        f"{lengths.name}, x {hidden}",
        setup.dtype_name,
        sides,
        floor,
        facts={"tokens": lengths.tokens, "fill": lengths.fill},
        missing=sides.missing,
    )
