"""The training step of fixed shapes: what it learns, and that a CUDA graph can hold it."""

from __future__ import annotations

import copy
import importlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from family import MEMBERS, small
from tiny import run_cli, sentences, write_model
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import bertfast
from bertfast import (
    BertConfig,
    BertfastError,
    BertForMaskedLM,
    BertForPreTraining,
    PackedBatch,
    kernels,
)
from bertfast.config import AlbertConfig, ElectraConfig, MPNetConfig
from bertfast.data.packing import Batches
from bertfast.kernels.launch import recording
from bertfast.model import attention
from bertfast.model.members import ElectraForMaskedLM, ElectraForPreTraining, member_class
from bertfast.objectives.joint import Distillation, ReplacedTokenDetection, generator_config
from bertfast.packed import Budget
from bertfast.training.checkpoint import checkpoints
from bertfast.training.graph import WARMUP, GraphedStep
from bertfast.training.metrics import read_metrics
from bertfast.training.optimizer import build_optimizer, clip_at_next_step, set_rate
from bertfast.training.precision import Masters
from support import DEVICE, forced, missing_backend

# The package has a function of that name.
pretraining = importlib.import_module("bertfast.training.pretrain")
module = importlib.import_module("bertfast.training.trainer")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
CONFIG = BertConfig(
    vocab_size=101, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=16
)  # fmt: skip


def rtd(config: BertConfig) -> ReplacedTokenDetection:
    shape = ElectraConfig(**asdict(config) | {"embedding_size": 16})
    return ReplacedTokenDetection(
        ElectraForPreTraining(shape), ElectraForMaskedLM(generator_config(shape, 0.5))
    )


def distill(config: BertConfig) -> Distillation:
    return Distillation(
        BertForMaskedLM(replace(config, num_hidden_layers=1)), BertForMaskedLM(config)
    )


MODELS = (BertForMaskedLM, BertForPreTraining, rtd, distill)
BUDGET = Budget(40, 6, 12, 16)
STEPS = (
    WARMUP + 5
)  # on a GPU some are launched one by one, one is captured, and the rest are replays
CLIP, RATE = 0.5, 3e-3
PRETRAIN: dict[str, Any] = {
    "steps": 12, "batch_tokens": 128, "seq_len": 24, "lr": 1e-3, "warmup": 2, "checkpoint_every": 4,
    "log_every": 1
}  # fmt: skip


def batch(number: int) -> PackedBatch:
    """A batch for each number, of other lengths and other positions to predict."""
    draw = torch.Generator().manual_seed(number)
    lengths = torch.randint(1, 12, (3 + number % 3,), generator=draw).tolist()
    ids = [torch.randint(5, 101, (length,), generator=draw).tolist() for length in lengths]
    made = PackedBatch.from_sequences(ids)
    made.masked_positions = (
        torch.randperm(made.num_tokens, generator=draw)[: 2 + number % 4].sort().values
    )
    made.masked_labels = torch.randint(5, 101, made.masked_positions.shape, generator=draw)
    made.pair_labels = torch.randint(2, (len(lengths),), generator=draw)
    made.max_seqlen = BUDGET.max_seqlen
    return made.to(DEVICE)


def trained(
    cls: type, precision: str, step: Callable[..., Any]
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """What ``step(model, masters, optimizer)`` returns for each batch, and the weights after
    them.
    """
    torch.manual_seed(0)
    model = cls(CONFIG).to(DEVICE).train()
    masters = Masters(model, precision)
    optimizer = build_optimizer(masters, RATE)
    call = step(model, optimizer)
    results = [
        call(batch(number), 1000 + number, RATE / (1 + number), number + 1)
        for number in range(STEPS)
    ]
    assert {int(state["step"]) for state in optimizer.state.values()} == {STEPS}
    return results, masters.named()


def eager(model: Any, optimizer: Any) -> Callable[..., Any]:
    def call(batch: PackedBatch, seed: int, rate: float, age: int) -> Any:
        output = model(batch, seed=seed)
        output.loss.backward()
        norm = clip_at_next_step(optimizer, CLIP)
        set_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()
        return numbers(output, norm)

    return call


def graphed(model: Any, optimizer: Any) -> Callable[..., Any]:
    step = GraphedStep(model, optimizer, CLIP, BUDGET, DEVICE)
    return lambda *arguments: numbers(*step(*arguments))


def numbers(output: Any, norm: torch.Tensor) -> dict[str, float]:
    names = ("loss", "mlm_loss", "nsp_loss", "mlm_correct", "mlm_count", "nsp_correct")
    found = {name: getattr(output, name, None) for name in names}
    return {name: float(value.detach()) for name, value in found.items() if value is not None} | {
        "norm": float(norm)
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.slow_unless(lambda precision: precision == "bf16")
def test_padded_steps_learn_what_plain_steps_learn(cls: type, precision: str) -> None:
    results, weights = trained(cls, precision, graphed)
    wanted, wanted_weights = trained(cls, precision, eager)
    limit = {"rel": 1e-4, "abs": 1e-5} if precision == "fp32" else {"rel": 0.02, "abs": 0.02}
    for mine, other in zip(results, wanted, strict=True):
        assert mine == pytest.approx(other, **limit)
    # Adam moves a weight whose gradient is rounding alone by the whole rate, whichever way that
    # falls.
    for name, weight in weights.items():
        assert (weight - wanted_weights[name]).norm() <= 0.02 * wanted_weights[
            name
        ].norm() + 0.02, name


def test_a_batch_beyond_the_budget_is_refused_and_nothing_is_trained() -> None:
    model = BertForMaskedLM(CONFIG).to(DEVICE).train()
    before = copy.deepcopy(model.state_dict())
    step = GraphedStep(model, build_optimizer(model, RATE), CLIP, Budget(5, 6, 12, 16), DEVICE)
    with pytest.raises(BertfastError, match="exceeds its budget: tokens is"):
        step(batch(0), 0, RATE, 1)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_the_first_calls_warm_up_one_captures_and_the_rest_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order of what is asked of CUDA, which stands here as a list of what it was asked."""
    did: list[str] = []

    @contextmanager
    def within(name: str) -> Iterator[None]:
        did.append(f"{name} begins")
        yield
        did.append(f"{name} ends")

    device = torch.device("cuda", 1)
    stream = SimpleNamespace(device=device, wait_stream=lambda other: did.append("wait"))
    monkeypatch.setattr(torch.cuda, "current_stream", {device: stream}.__getitem__)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("stream"))
    monkeypatch.setattr(
        torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: did.append("replay"))
    )
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: within("capture"))
    model = BertForMaskedLM(CONFIG).to(DEVICE).train()
    step = GraphedStep(model, build_optimizer(model, RATE), CLIP, BUDGET, DEVICE)
    monkeypatch.setattr(step, "stream", stream)
    monkeypatch.setattr(step, "_step", lambda: did.append("step"))
    monkeypatch.setattr(step.optimizer, "count", lambda: did.append("count"))
    calls = []
    for number in range(WARMUP + 3):
        did.clear()
        step(batch(number), number, RATE, number + 1)
        calls.append(list(did))
    assert calls[:WARMUP] == [["wait", "stream begins", "step", "stream ends", "wait"]] * WARMUP
    assert calls[WARMUP] == ["capture begins", "step", "capture ends", "replay"]
    assert calls[WARMUP + 1 :] == [["replay", "count"]] * 2


def test_a_capture_that_fails_is_said_once_and_the_steps_are_launched_to_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The stand-in fails once everything was recorded, the update with it."""

    @contextmanager
    def capture(graph: object, stream: object) -> Iterator[None]:
        before = [weight.detach().clone() for weight in recorded]
        yield
        for weight, old in zip(recorded, before, strict=True):  # what is recorded is not done
            weight.data.copy_(old)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    recorded: list[torch.Tensor] = []
    stream = SimpleNamespace(device=DEVICE, wait_stream=lambda other: None)

    def step(model: Any, optimizer: Any) -> Callable[..., Any]:
        call = GraphedStep(model, optimizer, CLIP, BUDGET, DEVICE)
        call.stream = stream  # type: ignore[assignment]
        recorded.extend(model.parameters())

        def numbered(*arguments: Any) -> Any:
            if call.calls == WARMUP:
                states = optimizer.state.values()
                recorded.extend(
                    x for state in states for x in (state["exp_avg"], state["exp_avg_sq"])
                )
            return numbers(*call(*arguments))

        return numbered

    wanted, wanted_weights = trained(BertForMaskedLM, "fp32", graphed)
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
        patched.setattr(torch.cuda, "graph", capture)
        patched.setattr(torch.cuda, "current_stream", lambda device: stream)
        patched.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        results, weights = trained(BertForMaskedLM, "fp32", step)
    assert results == wanted
    assert all(torch.equal(x, wanted_weights[name]) for name, x in weights.items())
    assert capfd.readouterr().err.splitlines() == [
        "bertfast: the step cannot be captured as a CUDA graph (operation not permitted when "
        "stream is capturing); the run goes on without it, launch by launch"
    ]


# --- what a capture forbids ---

READS = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "_unique2",
    "unique_consecutive",
    "masked_select",
    "equal",
)
BRINGS = ("lift_fresh",)  # what torch.tensor and its like do last


class NoHost(TorchDispatchMode):
    """Fails where a value goes to the host or comes from there, inside our ops too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        assert name not in READS, f"{func} reads a value on the host, or makes a shape of one"
        assert name not in BRINGS, f"{func} brings a value from the host"
        indexes = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = [x for x in indexes if x is not None and x.dtype == torch.bool]
        assert not masks, f"{func} makes a shape of a mask's values, which the host must read"
        if func.namespace == "bertfast":
            with self:
                return torch._library.custom_ops.OPDEFS[func.name().split(".")[0]]._init_fn(
                    *args, **(kwargs or {})
                )
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Triton kernels, and no look at values that are only looked at on the CPU; the interpreter
    itself is the GPU.
    """
    interpreter = pytest.importorskip(
        "triton.runtime.interpreter", reason="Triton is not installed"
    )
    executor = interpreter.GridExecutor
    launch = executor.__call__

    def unseen(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return launch(self, *args, **kwargs)

    with forced("triton"), monkeypatch.context() as patched, NoHost():
        patched.setattr(executor, "__call__", unseen)
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU checks it itself")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.slow_unless(lambda precision, cls: precision == "bf16" and cls == MODELS[0])
def test_a_step_neither_reads_values_on_the_host_nor_brings_any(
    cls: type, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cls(CONFIG).train()
    step = GraphedStep(
        model, build_optimizer(Masters(model, precision), RATE), CLIP, BUDGET, DEVICE
    )
    step._load(batch(0), 1, RATE, 1)
    with as_on_a_gpu(monkeypatch):
        step._step()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU checks it itself")
def test_the_check_sees_what_a_capture_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(3, requires_grad=True)
    forbidden: list[Callable[[], Any]] = [
        lambda: x.sum().item(),
        lambda: bool((x > 0).all()),
        lambda: x[x > 0],
        lambda: torch.tensor([1.0]),
    ]
    for act in forbidden:
        with pytest.raises(AssertionError, match="the host"), as_on_a_gpu(monkeypatch):
            act()
    with as_on_a_gpu(monkeypatch):
        kernels.dropout(x, 0.5, seed=torch.full((1,), 3)).sum().backward()
        kernels.dropout(x, 0.5, seed=3)


class NoCopy(TorchDispatchMode):
    """Fails where a tensor comes from the host or goes there, the meta device being the GPU; a
    number is no copy.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim()}
        assert len(devices) < 2, f"{func} copies between the host and the device"
        assert func.name() != "aten::_local_scalar_dense", "a value is read on the host"
        return out


@pytest.fixture
def meta_as_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The meta device, for which the Triton kernels are taken, and which knows no autocast."""
    monkeypatch.setattr(kernels.dispatch, "select", lambda *arguments: "triton")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *arguments: False)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(attention, "_made_once", cache(attention._made))
    return torch.device("meta")


def masked_lm(config: Any) -> torch.nn.Module:
    return member_class(config, "ForMaskedLM")(config)


def pairs(config: Any) -> torch.nn.Module:
    return member_class(config, "ForPreTraining")(config)


def of_member(config: Any) -> Distillation:
    return Distillation(masked_lm(config), masked_lm(config))


STEPPED = [
    *((small(config), build) for config in MEMBERS for build in (masked_lm, of_member)),
    *((small(config), pairs) for config in (BertConfig, AlbertConfig)),
    (small(ElectraConfig), rtd),
]


@pytest.mark.skipif(bool(missing_backend("triton")), reason=missing_backend("triton"))
@pytest.mark.parametrize(
    ("config", "build"), STEPPED, ids=lambda x: getattr(x, "__name__", type(x).__name__)
)
@pytest.mark.slow_unless(lambda config, build: type(config) is BertConfig and build is masked_lm)
def test_no_member_copies_from_the_host_once_a_step_has_warmed_up(
    config: Any, build: Callable[[Any], torch.nn.Module], meta_as_gpu: torch.device
) -> None:
    rates = {f.name: 0.1 for f in fields(config) if "dropout" in f.name}
    with meta_as_gpu:
        model = build(replace(config, vocab_size=101, **rates)).train()
    step = GraphedStep(
        model, build_optimizer(Masters(model, "bf16"), RATE), CLIP, BUDGET, meta_as_gpu
    )
    step._load(batch(0).to(meta_as_gpu), 1, RATE, 1)
    with recording(lambda launch: None):  # the interpreter has no values to compute with
        step._step()
        with NoCopy():
            step._step()


def test_tables_of_distances_are_never_dropped() -> None:
    """A graph that was captured reads them wherever they were."""
    model = masked_lm(small(MPNetConfig, max_position_embeddings=100)).eval()
    attention._made_once.cache_clear()
    for length in range(1, 90):
        model(torch.ones(1, length, dtype=torch.int64))
    assert attention._made_once.cache_info().currsize == 89


# --- pretraining with it ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    write_model(folder / "model")
    texts = [text for text, _ in sentences(300)]
    documents = ["\n".join(texts[start : start + 6]) for start in range(0, 300, 6)]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    return folder


def run(place: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    """The lines that a run logged, one a step, without what a clock decides."""
    model = str(place / "model")
    bertfast.pretrain(
        [str(place / "corpus.txt")], model, str(out), **{"model": model, **PRETRAIN, **options}
    )
    clocked = ("tokens_per_second", "seconds")
    return [
        {name: value for name, value in line.items() if name not in clocked}
        for line in read_metrics(out)
    ]


@pytest.fixture
def with_graph(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a run by `GraphedStep`; without a GPU the trainer is made to take it."""
    if torch.cuda.is_available():
        return {"cuda_graph": True}

    class Graphed(module.Trainer):  # type: ignore[name-defined]
        def __init__(self, model: Any, batches: Any, **options: Any) -> None:
            super().__init__(model, batches, **{**options, "budget": batches.budget()})

    monkeypatch.setattr(pretraining, "Trainer", Graphed)
    return {}


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
def test_pretraining_logs_the_same_losses_with_the_graph(
    objective: str,
    place: Path,
    tmp_path: Path,
    with_graph: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = run(place, tmp_path / "graphed", objective=objective, **with_graph)
    monkeypatch.undo()
    wanted = run(place, tmp_path / "plain", objective=objective, cuda_graph=False)
    for mine, other in zip(lines, wanted, strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_batches_beyond_the_budget_are_trained_all_the_same(
    place: Path, tmp_path: Path, with_graph: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run(place, tmp_path / "graphed", **with_graph)
    whole, call, used = Batches.budget, GraphedStep.__call__, []
    monkeypatch.setattr(Batches, "budget", lambda self: whole(self)._replace(tokens=116))
    monkeypatch.setattr(
        GraphedStep, "__call__", lambda *arguments: used.append(None) or call(*arguments)
    )
    mixed = run(place, tmp_path / "mixed", **with_graph)
    assert 0 < len(used) < PRETRAIN["steps"]
    for mine, other in zip(mixed, lines, strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("stop_after", [2, 7])
def test_a_graphed_run_that_was_stopped_goes_on_bit_for_bit(
    stop_after: int,
    place: Path,
    tmp_path: Path,
    with_graph: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(place, tmp_path / "whole", **with_graph)
    update, done = module.Trainer._update, []

    def update_then_interrupt(*arguments: Any) -> Any:
        done.append(None)
        if len(done) == stop_after:
            signal.raise_signal(signal.SIGINT)
        return update(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module.Trainer, "_update", update_then_interrupt)
        with pytest.raises(module.Interrupted):
            run(place, tmp_path / "parts", **with_graph)
    assert checkpoints(tmp_path / "parts")[-1].name == f"step-{stop_after:08d}"
    assert run(place, tmp_path / "parts", resume=True, **with_graph) == whole


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_graph_without_a_gpu_is_one_error(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = (
        "--data",
        place / "corpus.txt",
        "--tokenizer",
        place / "model",
        "--out",
        tmp_path / "run",
    )
    done = run_cli(monkeypatch, capfd, "pretrain", *paths, "--cuda-graph")
    assert done.code == 2
    assert done.errors == [
        "error: cuda-graph needs a GPU that PyTorch can use, and there is none here; leave it out"
    ]
    assert not (tmp_path / "run").exists()


def test_a_graph_and_accumulation_do_not_go_together(place: Path, tmp_path: Path) -> None:
    with pytest.raises(BertfastError, match="cuda-graph is on and accumulation 2"):
        run(place, tmp_path / "run", cuda_graph=True, accumulation=2)


# --- on a GPU ---


@needs_gpu
@pytest.mark.parametrize("cls", MODELS)
def test_a_step_makes_the_host_wait_for_nothing(cls: type) -> None:
    model = cls(CONFIG).to(DEVICE).train()
    step = GraphedStep(model, build_optimizer(model, RATE), CLIP, BUDGET, DEVICE)
    made = batch(0)
    step(made, 1, RATE, 1)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(made, 2, RATE, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_replays_are_the_same_bits_each_time() -> None:
    one, other = (trained(BertForPreTraining, "bf16", graphed) for _ in range(2))
    assert one[0] == other[0]
    assert all(torch.equal(weight, other[1][name]) for name, weight in one[1].items())


@needs_gpu
def test_a_replay_is_what_was_captured() -> None:
    model = BertForPreTraining(CONFIG).to(DEVICE).train()
    step = GraphedStep(model, build_optimizer(model, 0.0, weight_decay=0.0), CLIP, BUDGET, DEVICE)
    losses = [float(step(batch(0), 7, 0.0, number)[0].loss) for number in range(1, STEPS)]
    assert step.graph is not None
    assert len(set(losses)) == 1, (
        "at a rate of nothing, every step sees the same weights, batch and dropout"
    )
