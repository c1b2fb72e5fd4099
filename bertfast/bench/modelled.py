"""``bertfast profile --model-gpu``: what a training step should take on a GPU that is not there. A
model, not a measurement.

The step's launches are recorded while it runs on the meta device, which has shapes and no numbers.
Each takes the longest of

- its bytes, each tensor once and one that is updated in place twice, at the share of the memory's
  bandwidth that a copy reaches;
- its instructions, for a kernel of ours. The kernel is compiled ahead of time, its instructions are
  counted in the disassembly (`kernels/resources.py`), and each takes the clocks of its pipe;
- its multiply-adds, for a matrix product. Whole waves of tiles run at the best rate that products
  reach. Each wave has its first loads before it and its stores after it;
- the rounds of its loop, for a kernel that waits for memory in each, and then runs a warp's
  instructions.

Each launch has a start and an end besides, and between two of a CUDA graph lies a gap. The model
knows of no bank conflict, no cache and no uneven work but a product's, so a step takes longer than
it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bertfast.errors import BertfastError
from bertfast.kernels import dispatch, resources, throughput, tuning, use_backend
from bertfast.kernels.launch import Launch, recording
from bertfast.model import BertForMaskedLM
from bertfast.training.graph import GraphedStep
from bertfast.training.optimizer import build_optimizer
from bertfast.training.precision import Masters

from . import floors, options, steps
from .case import Setup
from .gpus import ALONE, COPY_SHARE, GAP, GPUS, LATENCY, START, Gpu
from .lengths import Lengths, wikitext
from .profile import match

PARAGRAPHS = 128  # of WikiText, where no batch is given
# Rows and columns of a product's tile that a library chooses among, and into how many parts the
# inner dimension may go.
TILES = ((128, 256), (256, 128), (128, 128), (64, 256), (64, 128))
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
MATRICES = {"mm", "addmm", "bmm", "baddbmm"}
# Ops that launch nothing, beside views: they give memory, or look at shapes.
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "set_"),
    *("_unsafe_view", "_reshape_alias", "resize_", "lift_fresh", "is_same_size"),
}
# Ops that launch several kernels on a GPU. A radix sort has a histogram, a scan and a pass for each
# byte of its keys. A scan has two. Norms of a list of tensors have one for some hundred, and one to
# join them.
SEVERAL = {"sort": 2, "cumsum": 2, "_foreach_norm": 3}


@dataclass(frozen=True)
class Product:
    """Matrices (count, rows, inner) times (count, inner, columns)."""

    count: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> float:
        """Two a multiply-add."""
        return 2.0 * self.count * self.rows * self.inner * self.columns

    def has(self, size: int) -> bool:
        """Whether one of its dimensions is of this size."""
        return size in (self.rows, self.inner, self.columns)


@dataclass
class Node:
    """Launches of one kind in the step's graph.

    Attributes:
        part: of the step, a name in `profile.OPS` or `profile.PLAIN`, or "other".
        what: a product, a recorded launch, or the name of an op of PyTorch.
        bytes: read and written, at the least.
        itemsize: of a product's factors.
        launches: how many.
    """

    part: str
    what: Product | Launch | str
    bytes: float
    itemsize: int = 4
    launches: int = 1


@dataclass
class Part:
    """A row of the table.

    Attributes:
        launches: of it in a step.
        seconds: modelled.
        bounds: seconds by what bounds them.
    """

    launches: int = 0
    seconds: float = 0.0
    bounds: dict[str, float] = field(default_factory=dict)

    def add(self, launches: int, seconds: float, bound: str) -> None:
        """Counts more of it."""
        self.launches += launches
        self.seconds += seconds
        self.bounds[bound] = self.bounds.get(bound, 0.0) + seconds

    @property
    def bound(self) -> str:
        """What bounds most of it."""
        return max(self.bounds, key=self.bounds.__getitem__)


class Recorder(TorchDispatchMode):
    """Collects the launches of what runs inside, on the meta device.

    Attributes:
        nodes: in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._op: str | None = None

    def record(self, launch: Launch) -> None:
        """Takes a launch of a kernel of ours."""
        name = launch.kernel.__name__
        tensors = [x for x in tree_leaves(launch.arguments) if isinstance(x, Tensor)]
        values = _values(launch)
        moved = _bytes(tensors) + _bytes([values[x] for x in IN_PLACE.get(name, ())])
        self.nodes.append(Node(self._part(name), launch, moved))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "bertfast":
            return self._ours(func, args, kwargs)
        with self:  # of others in plain sight, such as a matmul inside an op of ours
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        name = func.name().removeprefix("aten::").partition(".")[0]
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if func.namespace != "aten" or name in FREE or _is_view(func) or not _on_meta(tensors):
            return out
        if all(x.numel() == 0 for x in tree_leaves(out) if isinstance(x, Tensor)):
            return out
        node = Node(self._part(f"aten::{name}"), name, _bytes(tensors))
        node.launches = SEVERAL.get(name, 1)
        if name == "sort":
            node.launches += args[0].itemsize
        if name.removesuffix("_") in MATRICES:
            *_, left, right = (x for x in args if isinstance(x, Tensor) and x.dim() > 1)
            *count, rows, inner = left.shape
            node.what = Product(math.prod(count), rows, inner, right.shape[-1])
            node.itemsize = left.itemsize
        self.nodes.append(node)
        return out

    def _ours(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs the code that launches, and not the fake kernel."""
        name = func.name().partition(".")[0]
        outer, self._op, first = self._op, self._op or name, len(self.nodes)
        with self:
            out = torch._library.custom_ops.OPDEFS[name]._init_fn(*args, **kwargs)
        self._op = outer
        # Launches see pointers alone where an op hands them a table of these.
        touched = _bytes([x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)])
        touched += _mutated(func, args, kwargs)
        launched = [node for node in self.nodes[first:] if isinstance(node.what, Launch)]
        missing = touched - sum(node.bytes for node in self.nodes[first:])
        if launched and missing > 0:
            launched[-1].bytes += missing
        return out

    def _part(self, name: str) -> str:
        return match([name, *([self._op] if self._op else [])]) or "other"


def _bytes(tensors: list[Tensor]) -> float:
    """Of tensors, each once."""
    return sum({id(x): x.numel() * x.itemsize for x in tensors}.values())


def _mutated(func: Any, args: Any, kwargs: Any) -> float:
    """Bytes of the arguments that an op writes to: they are read as well."""
    given = dict(zip((x.name for x in func._schema.arguments), args, strict=False)) | kwargs
    written = [
        given[x.name]
        for x in func._schema.arguments
        if x.alias_info is not None and x.alias_info.is_write and x.name in given
    ]
    return _bytes([x for x in tree_leaves(written) if isinstance(x, Tensor)])


def _is_view(func: Any) -> bool:
    aliases = [x.alias_info for x in func._schema.returns]
    return any(x is not None and not x.is_write for x in aliases)


def _on_meta(tensors: list[Tensor]) -> bool:
    return any(x.is_meta for x in tensors)


@contextmanager
def _as_on(capability: int) -> Iterator[None]:
    """The Triton kernels with the options of a generation."""
    with tuning.target(capability), use_backend("triton"):
        yield


def record_step(setup: Setup, capability: int) -> list[Node]:
    """The launches of a training step as `bertfast pretrain` sends it to a GPU, after the first."""
    meta = torch.device("meta")
    batch = steps.make_batch(setup.lengths, setup.config.vocab_size, "cpu").packed.to(meta)
    with meta:
        model = BertForMaskedLM(setup.config).train()
    precision = "bf16" if setup.dtype == torch.bfloat16 else "fp32"
    optimizer = build_optimizer(Masters(model, precision), 1e-4)
    step = GraphedStep(model, optimizer, 1.0, batch.sizes, meta)
    recorder = Recorder()
    with _as_on(capability), recording(recorder.record):
        step._load(batch, 1, 1e-4, 1)
        with recorder:
            step._step()  # which makes the optimizer's state
            recorder.nodes.clear()
            step._step()
    return recorder.nodes


def model(setup: Setup, gpu: str) -> dict[str, Any]:
    """The step's model.

    Args:
        setup: the lengths, model and dtype.
        gpu: a name in `GPUS`.

    Returns:
        "gpu", "model", "batch" and "dtype", "seconds" of the step, "launches", and these:

        - "matrix_share": the useful FLOPs at the GPU's matrix rate over the step;
        - "vocabulary_products": how often the masked rows meet the vocabulary in PyTorch's
          products;
        - "counted_once": kernels with a loop of which one round alone is counted;
        - "parts": by name launches, seconds, what bounds them, and their share.

    Raises:
        BertfastError: no such GPU, or the kernels cannot be compiled here.
    """
    chip = GPUS[gpu]
    try:
        nodes = record_step(setup, chip.capability)
        clock = Clock(chip, setup.lengths)
        parts: dict[str, Part] = {}
        for node in nodes:
            seconds, bound = clock.time(node)
            parts.setdefault(node.part, Part()).add(node.launches, seconds, bound)
    except dispatch.BackendError as error:
        raise BertfastError(f"--model-gpu compiles the Triton kernels: {error}") from error
    launches = sum(part.launches for part in parts.values())
    parts["launch gaps"] = Part()
    parts["launch gaps"].add(0, launches * GAP, "gaps")
    total = sum(part.seconds for part in parts.values())
    masked = steps.masked_count(setup.lengths.tokens)
    useful = floors.step_flops(setup.config, setup.lengths, masked)
    ordered = sorted(parts.items(), key=lambda item: -item[1].seconds)
    return {
        "modelled": True,
        "gpu": chip.name,
        "model": f"{setup.config.num_hidden_layers} layers of {setup.config.hidden_size}, "
        f"vocabulary {setup.config.vocab_size:,}",
        "batch": f"{setup.lengths.name}: {len(setup.lengths.values)} sequences, "
        f"{setup.lengths.tokens} tokens",
        "dtype": setup.dtype_name,
        "seconds": total,
        "launches": launches,
        "matrix_share": useful / clock.rate(setup.itemsize) / total,
        "vocabulary_products": sum(
            node.what.flops
            for node in nodes
            if isinstance(node.what, Product) and node.what.has(setup.config.vocab_size)
        )
        / (2.0 * masked * setup.config.vocab_size * setup.config.hidden_size),
        "counted_once": sorted(clock.counted_once),
        "parts": {
            name: {
                "launches": part.launches,
                "seconds": part.seconds,
                "bound": part.bound,
                "share": part.seconds / total,
            }
            for name, part in ordered
        },
    }


def setup(shape: str, lengths: Path | None, dtype: str, tokens: int | None) -> Setup:
    """The step that is modelled: a file's lengths, or WikiText's of about so many tokens, 128
    paragraphs if none are given.

    Raises:
        BertfastError: no such preset or dtype, or a length beyond the model's positions.
    """
    config = options.check_shape(shape, dtype)
    if lengths is not None:
        batch = options.read_lengths(lengths)
    else:
        mean = wikitext(1000).tokens / 1000
        batch = wikitext(PARAGRAPHS if tokens is None else max(1, round(tokens / mean)))
    options.check_fit(batch, config, shape)
    return Setup(batch, config, getattr(torch, dtype), "cuda", compiled=False)


class Clock:
    """The time of each node on a GPU, in a step of a batch of these lengths."""

    def __init__(self, gpu: Gpu, lengths: Lengths) -> None:
        self.gpu, self.lengths = gpu, lengths
        self.counted_once: set[str] = set()  # kernels with loops of an unknown number of rounds

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a copy reads and writes."""
        return self.gpu.bandwidth * COPY_SHARE

    def rate(self, itemsize: int) -> float:
        """FLOP/s that products of such factors reach."""
        if itemsize < 4:
            return self.gpu.rate
        plain = throughput.WIDTHS[self.gpu.capability]["FMA"]
        return self.gpu.rate * plain / throughput.TENSOR[self.gpu.capability]

    def time(self, node: Node) -> tuple[float, str]:
        """Seconds, and what bounds them."""
        moved = node.bytes
        if isinstance(node.what, Launch) and node.what.kernel.__name__ in resources.PRODUCTS:
            name, values = node.what.kernel.__name__, _values(node.what)
            moved *= sum(_served(name, values, self.lengths)) / self.lengths.tokens
        found = {"bytes": moved / self.bandwidth}
        if isinstance(node.what, Product):
            found["matrix rate"] = self._product(node.what, node.itemsize)
        elif isinstance(node.what, Launch):
            found |= self._launch(node.what)
        bound = max(found, key=found.__getitem__)
        return node.launches * START + found[bound], bound

    def _product(self, x: Product, itemsize: int) -> float:
        """The least time of any tiles and any split of the inner dimension, in whole waves.

        A wave waits for its first loads, and writes its tiles at once.
        """
        gpu = self.gpu
        rate = self.rate(itemsize) / gpu.multiprocessors
        best = math.inf
        for rows, columns in TILES:
            tiles = x.count * -(-x.rows // rows) * -(-x.columns // columns)
            for split in SPLITS:
                waves = -(-tiles * split // gpu.multiprocessors)
                computing = 2 * rows * columns * math.ceil(x.inner / split) / rate
                # A split product's parts are written in float32, and added up.
                stored = rows * columns * (itemsize if split == 1 else 4)
                ends = LATENCY / gpu.clock + gpu.multiprocessors * stored / self.bandwidth
                best = min(best, waves * (computing + ends))
        return best

    def _launch(self, launch: Launch) -> dict[str, float]:
        """A kernel's instructions by pipe, and the rounds of its loop."""
        capability = self.gpu.capability
        compiled = resources.compile_launch(launch, capability)
        name = launch.kernel.__name__
        known = name in {*resources.PRODUCTS, *ELEMENTS, *LOADED}
        if compiled.code.innermost and not known:
            self.counted_once.add(name)
        clocks, waiting = work_of(launch, compiled, self.lengths, capability)
        each = 1 / (self.gpu.clock * self.gpu.multiprocessors)
        found = {name: value * each for name, value in clocks.items()}
        return found | {"latency": waiting / self.gpu.clock}


def work_of(
    launch: Launch, compiled: resources.Compiled, lengths: Lengths, capability: int
) -> tuple[dict[str, float], float]:
    """The clocks of one multiprocessor that did a launch alone, by pipe, and the clocks of waiting.

    The latter are what each program's loop takes by itself, where it waits for memory in each
    round.

    What lies outside of the loops is run once by every program. So is a loop of a kernel that
    neither `tiles` nor `ELEMENTS` nor `LOADED` knows.
    """
    name, programs, waiting = launch.kernel.__name__, math.prod(launch.grid), 0.0
    code, share = compiled.code, compiled.warps / throughput.SCHEDULERS
    values = _values(launch)
    itemsize = next(x for x in tree_leaves(launch.arguments) if isinstance(x, Tensor)).itemsize
    _, piece = resources.piece_of(name, launch.constants, itemsize, compiled, capability)
    count: float
    rounds: float
    if name in resources.PRODUCTS:
        has_tail = any(x.pipe == "tensor" for x in code.outside)
        programs, count = tiles(name, values, lengths, has_tail)
    elif name in ELEMENTS and code.innermost:
        elements = ELEMENTS[name](values)
        count = elements / (throughput.SCHEDULERS * throughput.WARP)
        at_once = piece.round / piece.issued * throughput.WARP * compiled.warps
        rounds = math.ceil(elements / (at_once * programs))
        waiting = rounds * (LATENCY + piece.round * ALONE)
    elif name in LOADED:
        clocks = throughput.bound(code.outside, capability, programs * share).clocks
        for loop in code.innermost:
            at_once = throughput.loaded_bytes(loop.instructions) * throughput.WARP * compiled.warps
            rounds = programs * LOADED[name](values) / at_once
            loops = throughput.bound(loop.instructions, capability, rounds * share).clocks
            clocks = {pipe: clocks[pipe] + value for pipe, value in loops.items()}
        return clocks, waiting
    else:
        return throughput.bound(code.instructions, capability, programs * share).clocks, waiting
    outside = throughput.bound(code.outside, capability, programs * share).clocks
    return {pipe: outside[pipe] + count * clocks for pipe, clocks in piece.clocks.items()}, waiting


def _values(launch: Launch) -> dict[str, Any]:
    """The launch's arguments and constants by name."""
    named = zip(launch.kernel.arg_names, launch.arguments, strict=False)
    return dict(named) | launch.constants


def _served(kernel: str, values: dict[str, Any], lengths: Lengths) -> list[int]:
    """The lengths of the sequences that a launch of attention's serves: others leave at once."""
    most = values["BLOCK_N"] if kernel == resources.ONE_PASS else lengths.longest
    return [length for length in lengths.values if values.get("above", 0) < length <= most]


def tiles(
    kernel: str, values: dict[str, Any], lengths: Lengths, has_tail: bool
) -> tuple[int, float]:
    """The programs of a launch of attention's that find something to do, and the 64 x 64 tiles of
    scores that their loops make.

    Args:
        kernel: its name.
        values: of its arguments and constants.
        lengths: of the sequences.
        has_tail: whether a program makes its last block, which is not whole, outside of the loop.
    """
    _, looped = resources.LOADED[kernel]
    owned = "BLOCK_M" if looped == "BLOCK_N" else "BLOCK_N"
    heads, step = values["q"].ptr.shape[1], values[looped]
    programs = rounds = 0
    for length in _served(kernel, values, lengths):
        blocks = -(-length // values[owned])
        programs += blocks
        rounds += blocks * (length // step if has_tail else -(-length // step))
    area = values["BLOCK_M"] * values["BLOCK_N"]
    return heads * programs, heads * rounds * area / resources.SIDE**2


def _width(values: dict[str, Any]) -> int:
    """Of a row with what fills it up; a kernel may hold it in pieces."""
    return values.get("PIECES", 1) * values["COLUMNS"]


# The elements that the loop of a kernel passes over, with those that only fill up a row.
ELEMENTS: dict[str, Callable[[dict[str, Any]], int]] = {
    "_gelu_backward_kernel": lambda values: values["rows"] * values["features"],
    "_norm_backward_kernel": lambda values: values["rows"] * _width(values),
    "_embed_backward_kernel": lambda values: values["tokens"] * _width(values),
}
# The bytes that each loop of a program loads.
LOADED: dict[str, Callable[[dict[str, Any]], int]] = {
    "_rows_kernel": lambda values: (
        values["vocab"]
        * (values["logits_ptr"].itemsize + values["HAS_BIAS"] * values["bias_ptr"].itemsize)
    ),
}
# Tensors that a kernel reads and writes.
IN_PLACE = {"_rows_kernel": ("logits_ptr",)}


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = (
        f"a training step, modelled and not measured: {found['seconds'] * 1e3:,.1f} ms, "
        f"{found['matrix_share']:.0%} of the matrix rate"
    )
    console.print(
        f"{found['gpu']}; {found['model']}; {found['batch']}; {found['dtype']}", markup=False
    )
    table = Table("part", title=title, title_justify="left")
    for heading in ("launches", "ms", "bound by", "share"):
        table.add_column(heading, justify="left" if heading == "bound by" else "right")
    for name, part in found["parts"].items():
        table.add_row(
            name,
            str(part["launches"]),
            f"{part['seconds'] * 1e3:,.2f}",
            part["bound"],
            f"{part['share']:.1%}",
        )
    table.add_section()
    table.add_row("all", str(found["launches"]), f"{found['seconds'] * 1e3:,.2f}", "", "100.0%")
    console.print(table)
    console.print(
        "a model: shapes, instruction counts and data sheets, with no cache and no imbalance; "
        "a GPU takes longer"
    )
    if found["counted_once"]:
        console.print(f"of a loop one round is counted in {', '.join(found['counted_once'])}")
