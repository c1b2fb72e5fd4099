"""Part 1: does every kernel compute what it should, here and at real shapes?

On the device it checks the ops and a training step of every member, with Triton and with the
reference. It also checks the step of every member and objective as a CUDA graph. Then come memory
errors, by compute-sanitizer, and the kernels' tests, where pytest is there. A check that fails is
written down and stops nothing.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bertfast import kernels
from bertfast.bench import steps
from bertfast.bench.case import TOLERANCE, Setup
from bertfast.bench.lengths import Lengths, wikitext
from bertfast.bench.ops import OPS, Build
from bertfast.bench.timing import relative_error
from bertfast.config import CONFIGS, PRESETS, ElectraConfig, EncoderConfig
from bertfast.model import ARCHITECTURES, member_class
from bertfast.objectives.joint import Distillation, ReplacedTokenDetection, generator_config
from bertfast.packed import PackedBatch
from bertfast.training.graph import WARMUP, GraphedStep
from bertfast.training.optimizer import build_optimizer
from bertfast.training.precision import Masters

from ..importable import REPOSITORY, is_missing
from ..settings import CURRENT, Settings
from .items import Item, Missing
from .journal import Journal

DTYPES = ("bfloat16", "float32", "float16")
LAYERS = 2  # of each member; ModernBERT's and ALBERT's ways repeat in three
TRIED = 3  # replays of a graph
QUICK_MEMBERS = ("bert", "modernbert")
QUICK_CAPTURES = (("bert", "pairs"), ("electra", "rtd"), ("modernbert", "distill"))
QUICK_SHAPE = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
TESTS = ("pytest", "pytest_timeout", "xdist", "hypothesis")  # what the kernels' tests need
SANITIZER = "compute-sanitizer"
SMOKE_LENGTHS = Lengths("smoke", (37, 1, 20, 64))


def items(settings: Settings) -> list[Item]:
    """Every check; those of one process after another last."""
    return [
        *op_checks(settings.quick),
        *member_checks(settings.quick),
        *capture_checks(settings.quick),
        Item("compute-sanitizer", sanitize, stage=1, seconds=150),
        Item("tests of the kernels", run_tests, stage=1, seconds=240),
    ]


def passes(journal: Journal, name: str, error: float, bound: float) -> None:
    """Writes whether an error is within its bound."""
    journal.write("check", item=name, passed=bool(error <= bound), error=error, bound=bound)


# --- ops ---


def op_checks(quick: bool) -> Iterator[Item]:
    """Each op in each dtype, dropout included: all backends draw the same bits."""
    for dtype in DTYPES[: 1 + (not quick) * 2]:
        for op, builds in OPS.items():
            for number, build in enumerate(builds, 1):
                if op != "linear":  # which is PyTorch's own on a GPU
                    name = f"{op} {number}, {dtype}"
                    yield Item(name, partial(check_op, name, build, dtype, quick))
        name = f"adamw, {dtype}"
        yield Item(name, partial(check_adamw, name, dtype, quick))


def check_op(name: str, build: Build, dtype: str, quick: bool, journal: Journal) -> None:
    """Results and gradients by Triton against those by the reference."""
    lengths, config = wikitext(64), EncoderConfig.preset("bert-base")
    if quick:
        lengths, config = Lengths("mixed", (5, 3)), replace(config, **QUICK_SHAPE)
    setup = Setup(lengths, config, getattr(torch, dtype), CURRENT.device)
    setup = replace(setup, kinds=("backend",), backends=("triton", "reference"))
    ours, reference = build(setup).sides
    passes(journal, name, relative_error(ours.run(), reference.run()), TOLERANCE[dtype])


def check_adamw(name: str, dtype: str, quick: bool, journal: Journal) -> None:
    """A few weights and their moments after an update, likewise."""
    sizes = (31,) if quick else (768 * 3072, 3072, 30522 * 768, 7)
    device, lower = CURRENT.device, dtype == "bfloat16"
    gradients = [torch.randn(size, device=device).to(getattr(torch, dtype)) for size in sizes]

    def update(backend: str) -> tuple[Tensor, ...]:
        weights, means, squares = (
            [gradient.float().mul(scale).abs() for gradient in gradients] for scale in (2, 0.5, 1)
        )
        copies = [weight.bfloat16() for weight in weights] if lower else []
        with kernels.use_backend(backend):
            kernels.adamw(weights, gradients, means, squares, copies, lr=0.1, step=3)
        return *weights, *means, *squares, *copies

    error = relative_error(update("triton"), update("reference"))
    passes(journal, name, error, TOLERANCE["bfloat16" if lower else "float32"])


# --- members ---


def config_of(model_type: str, quick: bool) -> EncoderConfig:
    """The member at its base size and a few layers, with dropout."""
    cls = CONFIGS[model_type]
    if quick:
        shape: dict[str, Any] = QUICK_SHAPE | {"pad_token_id": 0}
    else:
        base = [
            values for name, (kind, values) in PRESETS.items() if kind is cls and "base" in name
        ]
        shape = base[0] | {"num_hidden_layers": LAYERS + (model_type == "modernbert")}
    config = cls(**shape)
    rates = {f.name: 0.1 for f in fields(config) if f.name.endswith(("dropout_prob", "dropout"))}
    known = {name: rate for name, rate in rates.items() if isinstance(getattr(config, name), float)}
    return replace(config, **known)


def batch_for(config: EncoderConfig, quick: bool) -> PackedBatch:
    """Real lengths, a few tokens to predict, and an answer for each pair."""
    lengths = Lengths("mixed", (9, 1, 5)) if quick else wikitext(64)
    batch = steps.make_batch(lengths, config.vocab_size, CURRENT.device).packed
    return replace(batch, pair_labels=torch.arange(len(lengths.values), device=CURRENT.device) % 2)


def member_checks(quick: bool) -> Iterator[Item]:
    """A step of each member's masked LM, in half and in full precision."""
    for dtype in DTYPES[: 1 + (not quick)]:
        for model_type in QUICK_MEMBERS if quick else CONFIGS:
            name = f"step of {model_type}, {dtype}"
            yield Item(name, partial(check_member, name, model_type, dtype, quick))


def check_member(name: str, model_type: str, dtype: str, quick: bool, journal: Journal) -> None:
    """Loss and every gradient by Triton against those by the reference, under the same dropout."""
    config = config_of(model_type, quick)
    model = steps.masked_lm(config, CURRENT.device).train()
    if dtype == "bfloat16":
        Masters(model, "bf16")
    batch = batch_for(config, quick)

    def step(backend: str) -> tuple[Tensor, ...]:
        model.zero_grad()
        with kernels.use_backend(backend):
            loss = model(batch, seed=7).loss
            loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        return loss.detach(), *(gradient.float().clone() for gradient in gradients)

    found, wanted = step("triton"), step("reference")
    whole = math.sqrt(sum(float(x.square().sum()) for x in wanted[1:]))
    # A gradient that is rounding alone, as a key's bias's is, is measured against all of them.
    errors = [
        float((x - y).norm()) / (float(y.norm()) + 0.01 * whole)
        for x, y in zip(found, wanted, strict=True)
    ]
    worst = max(error if error == error else math.inf for error in errors)
    passes(journal, name, worst, steps.TOLERANCE[dtype])


# --- captures ---


def capture_checks(quick: bool) -> Iterator[Item]:
    """The masked LM and the distillation of each member; the pairs of those that have them;
    ELECTRA's replaced tokens.
    """
    builds: list[tuple[str, str, Callable[[EncoderConfig], nn.Module]]] = []
    for model_type, cls in CONFIGS.items():
        builds += [(model_type, "mlm", masked_lm), (model_type, "distill", distilled)]
        if f"{cls.__name__.removesuffix('Config')}ForPreTraining" in ARCHITECTURES:
            rtd = issubclass(cls, ElectraConfig)
            builds.append((model_type, "rtd", replaced) if rtd else (model_type, "pairs", pairs))
    for model_type, objective, build in builds:
        if quick and (model_type, objective) not in QUICK_CAPTURES:
            continue
        name = f"capture of {model_type}, {objective}"
        yield Item(name, partial(check_capture, name, model_type, build, quick))


def masked_lm(config: EncoderConfig) -> nn.Module:
    """The member's masked LM."""
    return member_class(config, "ForMaskedLM")(config)


def pairs(config: EncoderConfig) -> nn.Module:
    """With next sentences, or their order."""
    return member_class(config, "ForPreTraining")(config)


def distilled(config: EncoderConfig) -> nn.Module:
    """A student of its own size."""
    student, teacher = (member_class(config, "ForMaskedLM")(config) for _ in range(2))
    return Distillation(student, teacher)  # type: ignore[arg-type]


def replaced(config: EncoderConfig) -> nn.Module:
    """ELECTRA's generator and discriminator."""
    assert isinstance(config, ElectraConfig)
    generator = member_class(generator_config(config, 0.5), "ForMaskedLM")
    discriminator = member_class(config, "ForPreTraining")
    return ReplacedTokenDetection(
        discriminator(config),  # type: ignore[arg-type]
        generator(generator_config(config, 0.5)),  # type: ignore[arg-type]
    )


def check_capture(
    name: str,
    model_type: str,
    build: Callable[[EncoderConfig], nn.Module],
    quick: bool,
    journal: Journal,
) -> None:
    """Losses of a recorded step against those of a launched one.

    Raises:
        RuntimeError: the step cannot be recorded.
    """
    config, device = config_of(model_type, quick), torch.device(CURRENT.device)
    batch = batch_for(config, quick)

    def losses(recorded: bool) -> Tensor:
        torch.manual_seed(0)
        with device:
            model = build(config).train()
        optimizer = build_optimizer(Masters(model, "bf16"), 1e-4)
        step = GraphedStep(model, optimizer, 1.0, batch.sizes, device)
        if not recorded:
            step.stream = None
        count = 1 if quick else WARMUP + TRIED
        found = [float(step(batch, age, 1e-4, age)[0]["loss"]) for age in range(1, count + 1)]
        if recorded and device.type == "cuda" and step.graph is None:
            raise RuntimeError("the step cannot be recorded; the log says why")
        return torch.tensor(found)

    with kernels.use_backend("triton"):
        error = relative_error((losses(True),), (losses(False),))
    passes(journal, name, error, 1e-3)


# --- what other programs check ---


def sanitize(journal: Journal) -> None:
    """Each kernel once at small odd shapes, under NVIDIA's checker of memory."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    tool = shutil.which(SANITIZER, path=folders)
    if tool is None:
        raise Missing(f"{SANITIZER} is not installed")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", __name__]
    code, said = _run(command, 140)
    if code == 0:
        passes(journal, SANITIZER, 0.0, 0.0)
    else:
        raise RuntimeError(f"ended with code {code}: {said}")


def smoke() -> None:
    """What the sanitizer watches: every op, forward and backward, by Triton."""
    config = replace(EncoderConfig.preset("bert-tiny"), vocab_size=1003)
    for builds in OPS.values():
        for build in builds:
            setup = Setup(SMOKE_LENGTHS, config, torch.bfloat16, CURRENT.device)
            build(replace(setup, kinds=(), backends=("triton",))).sides[0].run()


def run_tests(journal: Journal) -> None:
    """The tests of the kernels, of the graph and of the tuning."""
    absent = [name for name in TESTS if is_missing(name)]
    if absent:
        raise Missing(f"{', '.join(absent)} not installed")
    if CURRENT.quick:
        raise Missing("`make test` runs them")
    tests = ["tests/kernels", "tests/training/test_graph.py", "tests/apps/test_tune.py"]
    options = ["-q", "--timeout", "0", "-p", "benchmarks.importable", "-n", "8"]
    # What the compiler says of registers and shared memory needs no GPU: `make test` checks it.
    options += ["--ignore=tests/kernels/test_resources.py"]
    code, said = _run([sys.executable, "-m", "pytest", *options, *tests], 230)
    if code == 0:
        passes(journal, "tests of the kernels", 0.0, 0.0)
    else:
        raise RuntimeError(f"ended with code {code}: {said}")


def _run(command: list[str], seconds: float) -> tuple[int, str]:
    """Exit code, and the last line that was said."""
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.run(
            command, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT, timeout=seconds
        )
        out.seek(0)
        lines = [line.strip() for line in out if line.strip()]
    return done.returncode, (lines or ["nothing"])[-1]


if __name__ == "__main__":
    smoke()
