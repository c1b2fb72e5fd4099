"""A case: one piece of work at one shape, the sides that do it, and the floor beneath them all."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bertfast import kernels
from bertfast.config import EncoderConfig
from bertfast.kernels import dispatch

from . import timing
from .floors import Floor
from .lengths import Lengths
from .timing import Samples, Side

# Errors that rounding may make between two right answers, as ‖a - b‖ / ‖b‖.
TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2, "float16": 4e-3}

Results = tuple[Tensor, ...]
Call = Callable[[], Results]


@dataclass(frozen=True)
class Setup:
    """What a case is built for.

    Attributes:
        lengths: of the sequences.
        config: of the model, for the other sizes.
        dtype: of the tensors.
        device: "cpu" or "cuda".
        compiled: whether `torch.compile` is among the peers; compiling takes a while.
        kinds: of sides, beside ours, that are wanted.
        backends: of an op, the first of which is "ours", whatever a user gets. None is the one that
            a user gets, and then each other one that can run.
        say: told what comes next while a case is made, a line each.
    """

    lengths: Lengths
    config: EncoderConfig
    dtype: torch.dtype
    device: str
    compiled: bool = True
    kinds: tuple[str, ...] = ("backend", "peer", "forward", "floor")
    backends: tuple[str, ...] | None = None
    say: Callable[[str], None] = lambda text: None

    @property
    def dtype_name(self) -> str:
        return dispatch.dtype_name(self.dtype)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def draw(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Normal numbers, the same in every dtype up to rounding; a leaf that takes gradients."""
        return (
            (torch.randn(shape, device=self.device) * scale + shift).to(self.dtype).requires_grad_()
        )


@dataclass
class Case:
    """One row of the results: what is done, by whom, and what nobody can do without.

    Attributes:
        op: the op, or "step".
        shape: of its input, in words.
        dtype: "float32" or "bfloat16".
        sides: exactly one of them of the kind "ours".
        floor: the FLOPs and bytes of the work.
        products: whether matrix products are most of it, so that the FLOPs are what binds; else the
            bytes are.
        tolerance: of the comparison; None takes `TOLERANCE`'s.
        facts: more to keep with the case.
        missing: sides that could not run, and why.
    """

    op: str
    shape: str
    dtype: str
    sides: list[Side]
    floor: Floor
    products: bool = False
    tolerance: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def check(self) -> dict[str, float]:
        """Each side's relative error against ours.

        Raises:
            BertfastError: a side computes something else.
        """
        return timing.check_agreement(self.sides, self.tolerance or TOLERANCE[self.dtype])

    def description(self) -> dict[str, Any]:
        """The case as JSON keeps it, without what its sides did."""
        return {
            "op": self.op,
            "shape": self.shape,
            "dtype": self.dtype,
            "flops": self.floor.flops if self.products else None,
            "floor": asdict(self.floor),
            **self.facts,
        }

    def record(self, errors: dict[str, float], samples: dict[str, Samples]) -> dict[str, Any]:
        """The same with it."""
        found = {"errors": errors, "missing": self.missing, "sides": timing.summarize(samples)}
        return self.description() | found

    def run(
        self,
        device: str,
        seconds: float,
        say: Callable[[str], None] = lambda text: None,
    ) -> dict[str, Any]:
        """Checks, then times all sides in turn for about so many seconds; the record.

        An interrupt ends the timing: the record is then of the whole rounds before it, if there is
        one.
        """
        name = f"{self.op}, {self.shape}"
        say(f"{name}: comparing what {len(self.sides)} sides compute")
        errors = self.check()
        say(f"{name}: warming up")
        apart = device == "cuda"
        samples, rounds = timing.prepare(self.sides, device, seconds, quick=False, apart=apart)
        say(f"{name}: timing {rounds} rounds")

        def on_round(number: int) -> None:
            if number == 1 or number * 5 // rounds > (number - 1) * 5 // rounds:
                say(f"{name}: {number} of {rounds} rounds are timed")

        try:
            timing.race(self.sides, samples, rounds, device, on_round)
        except KeyboardInterrupt:
            if not timing.whole_rounds(samples):
                raise
        return self.record(errors, samples)


class Sides(list[Side]):
    """The sides of a case as they are collected.

    Attributes:
        missing: those that cannot run here, and why.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        self.missing: dict[str, str] = {}
        torch._dynamo.reset()  # its limits count what earlier cases compiled

    def append(self, side: Side) -> None:
        """Takes a side in, if one of its kind is wanted."""
        if side.kind in ("ours", *self.setup.kinds):
            super().append(side)

    def ours(self, op: str, run: Call, probe: Call, head_dim: int | None = None) -> None:
        """A side for each backend, the first of them "ours"; see `Setup`."""
        for backend in self.setup.backends or self._usual(op, head_dim):
            kind = "backend" if self else "ours"
            on = partial(kernels.use_backend, backend)
            self.append(Side(f"bertfast {backend}", kind, within(on, run), within(on, probe)))

    def _usual(self, op: str, head_dim: int | None) -> list[str]:
        """The backend that a user gets, then each other one that can run."""
        where, dtype = torch.device(self.setup.device), self.setup.dtype
        taken = dispatch.select(op, where, dtype, head_dim)
        return [
            backend
            for backend in sorted(dispatch.BACKENDS, key=lambda name: name != taken)
            # Triton's interpreter is for tests.
            if (backend != "triton" or where.type == "cuda")
            and not dispatch.reasons_against(backend, op, where, dtype, head_dim)
        ]

    def peer(self, name: str, run: Call, probe: Call, kind: str = "peer") -> None:
        """Somebody else's way, if it is wanted and runs here; of the kind "forward" where it is a
        forward alone.
        """
        if kind not in self.setup.kinds:
            return
        self.setup.say(f"making {name}")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                run()
                probe()
        except Exception as error:  # backends and compilers fail in many ways; the record says how
            # What scaled_dot_product_attention has against a backend, it warns of.
            hint = str(said[-1].message).split(" (Triggered")[0] if said else ""
            self.missing[name] = reason(error) + (f" ({hint})" if hint else "")
        else:
            self.append(Side(name, kind, run, probe))

    def eager_and_compiled(
        self,
        name: str,
        run: Callable[[Callable], Call],
        timed: Callable,
        plain: Callable | None = None,
    ) -> None:
        """A function of plain PyTorch, and the same under `torch.compile`.

        Args:
            run: makes the call that is timed, forward and backward, of such a function.
            timed: the function.
            plain: the same without dropout, to compare; None where there is no dropout.
        """
        self.peer(name, run(timed), run(plain or timed))
        if self.setup.compiled:
            compiled = run(torch.compile(timed, dynamic=False))
            compared = run(torch.compile(plain, dynamic=False)) if plain else compiled
            self.peer(f"{name}, compiled", compiled, compared)

    def liger(self, name: str, make: Callable[[Any], tuple[Call, Call]]) -> None:
        """An op of Liger-Kernel, made from its module of functions, on the GPUs that it is for."""
        if self.setup.device != "cuda":
            self.missing[name] = "Liger-Kernel runs on GPUs alone"
        elif importlib.util.find_spec("liger_kernel") is None:
            self.missing[name] = "liger_kernel is not installed"
        else:
            from liger_kernel.transformers import functional

            self.peer(name, *make(functional))

    def copies(self, floor: Floor) -> None:
        """The floor of a memory-bound op: a copy that moves as many bytes as must be read and
        written.
        """
        size = max(1, round(floor.bytes / 2))
        source = torch.ones(size, dtype=torch.uint8, device=self.setup.device)
        target = torch.empty_like(source)
        self.append(Side("floor: a copy of the same bytes", "floor", lambda: target.copy_(source)))


@dataclass(frozen=True)
class Differentiated:
    """A function and its backward: called, it gives outputs and then the gradients of the inputs
    that are there.

    Attributes:
        function, inputs, douts: what is called, with what, and the gradients of its outputs.
        compared: how many of the results are given; None is all.
        context: within which both run.
    """

    function: Callable
    inputs: tuple[Tensor | None, ...]
    douts: tuple[Tensor, ...]
    compared: int | None = None
    context: Callable[[], AbstractContextManager[object]] = nullcontext

    def __call__(self) -> Results:
        outs = self.forward()
        return (*(x.detach() for x in outs), *self._gradients(outs))[: self.compared]

    @property
    def passes(self) -> dict[str, Callable[[], Call]]:
        """Makers of the forward alone and of the backward alone, by name."""
        return {"forward": lambda: self.forward, "backward": self.backward}

    def forward(self) -> Results:
        """The outputs, which take gradients."""
        with self.context():
            out = self.function(*self.inputs)
        return out if isinstance(out, tuple) else (out,)

    def backward(self) -> Call:
        """The gradients alone, of one forward that is done now."""
        outs = self.forward()
        return lambda: self._gradients(outs, keep=True)

    def _gradients(self, outs: Results, keep: bool = False) -> Results:
        given = [x for x in self.inputs if x is not None]
        with self.context():
            return torch.autograd.grad(outs, given, self.douts, retain_graph=keep)


def differentiated(
    function: Callable,
    inputs: Sequence[Tensor | None],
    douts: Sequence[Tensor],
    compared: int | None = None,
) -> Differentiated:
    """Calls the function and its backward, and gives so many of the results."""
    return Differentiated(function, tuple(inputs), tuple(douts), compared)


def within(context: Callable[[], AbstractContextManager[object]], call: Call) -> Call:
    """The call inside such a context."""
    if isinstance(call, Differentiated):
        return replace(call, context=context)

    def inside() -> Results:
        with context():
            return call()

    return inside


def reason(error: BaseException) -> str:
    """The first line of an error, for the record of what could not run."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
