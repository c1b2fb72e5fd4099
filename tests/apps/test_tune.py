"""`bertfast tune`: it keeps the fastest candidate that computes what the shipped options
compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import run_cli

from bertfast import BertfastError, kernels
from bertfast.apps import tune
from bertfast.kernels import launch, tuning
from support import DEVICE, forced

KERNEL = "adamw.update"
USUAL = {"BLOCK": 1024, "num_warps": 4}


def problem(
    grid: list[dict[str, int]], run: Callable[[], tuple[torch.Tensor, ...]] | None = None
) -> tune.Problem:
    return tune.Problem(KERNEL, 0, grid, run or (lambda: (torch.ones(3),)))


def block() -> int:
    """Of the candidate that is being tried."""
    return tuning.options(KERNEL, torch.float32, torch.device("cpu"))["BLOCK"]


def by_block(seconds: dict[int, float]) -> Callable[[Any], float]:
    return lambda run: seconds[block()]


GRID = [{"BLOCK": size, "num_warps": 4} for size in (512, 1024, 2048)]


def test_the_fastest_candidate_is_found() -> None:
    measure = by_block({512: 3.0, 1024: 2.0, 2048: 1.0})
    found = tune.search(problem(GRID), torch.float32, USUAL, measure)
    assert found == tune.Found(GRID[2], 1.0, 2.0, 0)
    assert block() == 1024, "nothing is tried any longer"


def test_the_shipped_options_stay_where_the_gain_is_within_the_noise() -> None:
    measure = by_block({512: 1.99, 1024: 2.0, 2048: 2.5})
    assert tune.search(problem(GRID), torch.float32, USUAL, measure) == tune.Found(
        USUAL, 2.0, 2.0, 0
    )


def test_a_candidate_that_computes_something_else_or_cannot_run_is_left_out() -> None:
    def run() -> tuple[torch.Tensor, ...]:
        if block() == 512:
            raise RuntimeError("out of shared memory")
        return (torch.full((3,), float("nan") if block() == 2048 else 1.0),)

    measure = by_block({512: 1.0, 1024: 2.0, 2048: 1.0})
    assert tune.search(problem(GRID, run), torch.float32, USUAL, measure) == tune.Found(
        USUAL, 2.0, 2.0, 2
    )


def test_candidates_that_spill_or_are_slow_by_the_model_are_not_measured() -> None:
    costs = [
        tune.Cost(spills=4, clocks=1.0),
        tune.Cost(clocks=100.0),
        tune.Cost(clocks=100.0 * tune.SLOWER + 1),
    ]
    assert tune.affordable(GRID, costs) == [GRID[1]]
    measure = by_block({512: 1.0, 1024: 2.0, 2048: 1.0})
    found = tune.search(problem(GRID), torch.float32, USUAL, measure, costs)
    assert found == tune.Found(USUAL, 2.0, 2.0, 0, left_out=2)
    costs[1] = tune.Cost(error="OutOfResources")
    assert tune.affordable(GRID, costs) == [GRID[2]]
    assert tune.affordable(GRID, [tune.Cost(error="x")] * 3) == []
    assert tune.affordable(GRID, [tune.Cost()] * 3) == GRID, "of a kernel without a model"


def test_a_candidate_is_compiled_and_costed_without_being_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    did: list[str] = []

    class Kernel:
        """A launched function: the tuned one, and another of the same problem."""

        def __init__(self, name: str) -> None:
            self.fn = SimpleNamespace(__name__=name, __module__="bertfast.kernels.adamw")

        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *arguments, **constants: did.append(f"{self.fn.__name__} launched")

        def warmup(self, *arguments: Any, grid: object, **constants: Any) -> Any:
            did.append(f"{self.fn.__name__} compiled, {constants['BLOCK']}")
            if constants["BLOCK"] == 512:
                raise MemoryError
            metadata = SimpleNamespace(num_warps=4, shared=7)
            return SimpleNamespace(
                asm={"cubin": b""}, metadata=metadata, run=None, n_regs=99, n_spills=3
            )

    def run() -> tuple[torch.Tensor, ...]:
        for name in ("_adamw_kernel", "_other_kernel"):
            launch.launch(Kernel(name), (1,), torch.ones(3), BLOCK=block(), num_warps=4)
        return (torch.ones(3),)

    work = SimpleNamespace(least=5.0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(tune.resources, "disassemble", lambda cubin: None)
    monkeypatch.setattr(tune.resources, "piece_of", lambda *arguments: ("element", work))
    assert list(tune.compile_costs(problem([], run), GRID[:2])) == [
        tune.Cost(error="MemoryError"),
        tune.Cost(registers=99, spills=3, shared=7, clocks=5.0),
    ]
    assert did == [
        "_adamw_kernel compiled, 512",
        "_adamw_kernel compiled, 1024",
        "_other_kernel launched",
    ]


def test_an_error_of_the_shipped_options_is_no_candidates() -> None:
    def run() -> tuple[torch.Tensor, ...]:
        raise RuntimeError("the driver is gone")

    with pytest.raises(RuntimeError, match="the driver is gone"):
        tune.search(problem(GRID, run), torch.float32, USUAL, by_block({}))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tune, "VOCAB", 150)
    with forced("triton"):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", list(tune.PROBLEMS))
@pytest.mark.slow
def test_every_candidate_is_one_for_its_kernel_and_the_problem_runs(
    op: str, dtype: torch.dtype, small: None
) -> None:
    torch.manual_seed(0)
    for one in tune.PROBLEMS[op](dtype, DEVICE, 16, 24, 256):
        _, usual = tuning.default(one.kernel, dtype, DEVICE, one.size)
        assert all(candidate.keys() == usual.keys() for candidate in one.grid)
        assert len(one.grid) > 8
        few = tune.Problem(one.kernel, one.size, one.grid[:1], one.run)
        found = tune.search(few, dtype, usual, lambda run: 1.0)
        assert (found.options, found.unusable) == (usual, 0)
        _, own = tune._observed(one)
        # In half precision one pass serves the short sequences that the interpreter has time for.
        if dtype == torch.float32 or not one.kernel.endswith("_gradient"):
            assert own is not one.run, "its own launches are known among the others"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_cli(monkeypatch, capfd, "tune")
    assert done.code == 2
    assert done.errors == ["error: tune measures on a CUDA GPU, and PyTorch finds none here"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"op": "dropout"}, "op is 'dropout'; it must be one of adamw"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"head_dim": 65}, "head-dim is 65"),
        ({"hidden": 0}, "hidden is 0"),
    ],
)
def test_what_cannot_be_tuned_is_said(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(BertfastError, match=said):
        tune.tune(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures on a GPU")
def test_a_measured_kernel_is_launched_as_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BERTFAST_CACHE", str(tmp_path / "tuning.json"))
    tune.tune("adamw")
    entry = tuning.read_cache(tuning.cache_file())[tuning.machine(0)][KERNEL]
    assert (
        tuning.options(KERNEL, torch.bfloat16, torch.device("cuda", 0)) == entry["options"]["half"]
    )
    weight, zero = torch.ones(5, device=DEVICE), [torch.zeros(5, device=DEVICE)]
    kernels.adamw(
        [weight],
        [torch.ones(5, device=DEVICE)],
        zero,
        [torch.zeros(5, device=DEVICE)],
        lr=0.1,
        step=1,
    )
    torch.testing.assert_close(weight, torch.full((5,), 0.9, device=DEVICE))
    tuning._chosen.cache_clear()
    tuning.read_cache.cache_clear()
