"""How the Triton kernels are launched: on which device, over which grid, in how many variants. No
kernel runs: a stand-in takes the launches.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bertfast import kernels
from bertfast.kernels import launch as module
from bertfast.kernels.attention.backward_one_pass import launch_one_pass, one_pass_options
from bertfast.kernels.attention.backward_two_passes import launch_two_passes
from bertfast.kernels.attention.forward import launch_forward
from bertfast.kernels.attention.tile_list import tile_list
from support import REPOSITORY, missing_backend, random_positions

pytestmark = pytest.mark.skipif(bool(missing_backend("triton")), reason=missing_backend("triton"))
SEQUENCES = 70_000
GRID_LIMIT = (2**31 - 1, 65_535, 65_535)


def launches(path: Any) -> list[str]:
    """The calls of a file that launch a kernel by themselves: ``kernel[grid](...)``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if isinstance(call, ast.Subscript)]


def test_every_kernel_is_launched_from_one_place() -> None:
    found = {
        path.name: calls
        for path in (REPOSITORY / "kernels").rglob("*.py")
        if (calls := launches(path))
    }
    assert found == {"launch.py": ["kernel[grid]"]}


@pytest.mark.parametrize("first", [True, False])
def test_a_kernel_is_launched_on_the_device_of_its_tensors(
    first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Any] = []

    @contextmanager
    def device(wanted: Any) -> Iterator[None]:
        entered.append(wanted)
        yield
        entered.append("left")

    class OnSecond(Tensor):
        device = torch.device("cuda", 1)  # type: ignore[assignment]

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **constants: entered.append((grid, len(arguments), constants))

    x = torch.zeros(2).as_subclass(OnSecond)
    monkeypatch.setattr(torch.cuda, "device", device)
    module.launch(Kernel(), (3, 2), *((x, 5) if first else (5, None, (7, (x, 1)))), BLOCK=16)
    count = 2 if first else 3
    assert entered == [torch.device("cuda", 1), ((3, 2), count, {"BLOCK": 16}), "left"]


def test_a_recorded_launch_is_not_made() -> None:
    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            raise AssertionError("launched")

    kernel, x, found = Kernel(), torch.zeros(2, device="meta"), []
    with module.recording(found.append):
        with module.recording(lambda launch: None):
            module.launch(kernel, (1,), x)
        module.launch(kernel, (3, 2), x, 5, BLOCK=16)
    assert found == [module.Launch(kernel, (3, 2), (x, 5), {"BLOCK": 16})]
    with pytest.raises(AssertionError, match="launched"):
        module.launch(kernel, (1,), torch.zeros(1))


def grids(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> dict[str, Any]:
    """The grid of each kernel that a call launches."""
    from triton.runtime.interpreter import InterpretedFunction

    found: dict[str, Any] = {}

    def run(self: Any, *arguments: Any, grid: Any, **options: Any) -> None:
        found[self.fn.__name__] = grid

    def item(self: Any, grid: Any) -> Any:
        return lambda *arguments, **options: run(self, *arguments, grid=grid, **options)

    with monkeypatch.context() as patched:
        patched.setattr(InterpretedFunction, "__getitem__", item)
        call()
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is interpreted")
def test_seventy_thousand_sequences_fit_every_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    boundaries = torch.arange(SEQUENCES + 1, dtype=torch.int32)
    seed, lse = torch.zeros(1, dtype=torch.int64), torch.empty(1, SEQUENCES)
    x = torch.empty(SEQUENCES, 1, 16, dtype=torch.bfloat16)
    positions = random_positions("bqk", SEQUENCES, 1, 1, x.dtype)
    tables = [torch.empty_like(table) for table in positions.tables]
    empty = [x.new_empty(0)] * 3
    backward, dqkv = (x, x, x, x, x, lse, boundaries), x.new_empty(SEQUENCES, 3, 1, 16).unbind(1)

    def attention() -> None:
        listed = tile_list(boundaries, SEQUENCES, 1)
        launch_forward(x, x, x, boundaries, listed, seed, 1, 1.0, 9, -1, None, x.clone(), lse)
        launch_one_pass(*backward, seed, 1.0, 9, dqkv, one_pass_options(x, 1, (9, 0)))
        for places, room in ((None, empty), (positions, tables)):
            launch_two_passes(*backward, listed, seed, 1, 1.0, 9, -1, places, (*dqkv, *room))

    def others() -> None:
        rows = torch.zeros(SEQUENCES, 16, requires_grad=True)
        weight = torch.ones(16, requires_grad=True)
        ids = torch.zeros(SEQUENCES, dtype=torch.int64)
        index = torch.arange(SEQUENCES)
        with kernels.use_backend("triton"):
            table = torch.zeros(3, 16, requires_grad=True)
            y = kernels.embed(ids, ids, ids, table, table, table, weight, weight, dropout_p=0.1)
            y = kernels.add_layer_norm(y, rows, weight, weight, dropout_p=0.1)
            y = kernels.bias_gelu(y, weight)
            y = kernels.dropout(y, 0.1)
            y = kernels.gather_rows(y, index)
            turned = kernels.rotary(
                y.view(-1, 1, 16), y.view(-1, 1, 16), ids, *kernels.rotary_tables(2, 16, 100.0)
            )
            y = y + sum(x.flatten(1) for x in turned)
            loss, _ = kernels.linear_cross_entropy(y, table, None, ids)
            loss.backward()
            kernels.mask_tokens(
                ids, torch.zeros(SEQUENCES, dtype=torch.bool), mask_id=1, vocab_size=3
            )

    found = {**grids(monkeypatch, attention), **grids(monkeypatch, others)}
    assert len(found) >= 17, sorted(found)
    for kernel, grid in found.items():
        within = [size <= limit for size, limit in zip(grid, GRID_LIMIT, strict=False)]
        assert all(within), f"{kernel} has the grid {grid}"


VARIANTS = """
import json, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import create_function_from_signature
from bertfast import BertConfig, BertForMaskedLM, PackedBatch, kernels
from bertfast.kernels import dispatch, launch, linear_cross_entropy

backend = CUDABackend(GPUTarget("cuda", 90, 32))
variants = {}

def specialise(kernel, grid, *arguments, **constants):
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    _, found, _ = bind(*arguments, **constants)
    name = f"{kernel.__name__} {[value for kind, value in found if kind == 'constexpr']}"
    variants.setdefault(name, set()).add(repr(found))

one_place = launch.launch
for name, module in list(sys.modules.items()):
    if name.startswith("bertfast.kernels.") and getattr(module, "launch", None) is one_place:
        module.launch = specialise
dispatch.INTERPRETED = True

torch.manual_seed(0)
config = BertConfig(vocab_size=101, hidden_size=64, num_hidden_layers=3, num_attention_heads=2,
                    intermediate_size=128, max_position_embeddings=32)
model = BertForMaskedLM(config).bfloat16().train()
batch = PackedBatch.from_sequences([[5] * 16] * 8)
batch.masked_positions = torch.arange(0, 128, 2)
batch.masked_labels = torch.full((64,), 7)
with kernels.use_backend("triton"):
    model(batch, seed=3).loss.backward()
    for seed in torch.zeros(8, dtype=torch.int64).split(1):
        kernels.dropout(torch.ones(64), 0.1, seed=seed)
    linear_cross_entropy.BLOCK_BYTES = 37 * 101 * 2
    hidden = torch.ones(90, 64, dtype=torch.bfloat16, requires_grad=True)
    kernels.linear_cross_entropy(hidden, torch.ones(101, 64, dtype=torch.bfloat16), None,
                                 torch.zeros(90, dtype=torch.int64))[0].backward()
print(json.dumps({name: sorted(found) for name, found in variants.items()}))
"""


@pytest.mark.slow
def test_no_kernel_is_compiled_again_for_where_a_seed_or_a_slice_lies() -> None:
    """What Triton would compile a variant for, from the arguments of a step's launches."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", VARIANTS],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    kernels_seen = {name.split()[0] for name in found}
    assert {
        "_dropout_kernel",
        "_embed_backward_kernel",
        "_embed_forward_kernel",
        "_forward_kernel",
        "_norm_backward_kernel",
        "_norm_forward_kernel",
        "_one_pass_kernel",
        "_rows_kernel",
        "_scale_kernel",
    } <= kernels_seen
    for name, variants in found.items():
        assert len(variants) == 1, f"{name}: {variants}"
