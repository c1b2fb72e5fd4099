"""Pretraining: text and a tokenizer in, a BERT in Hugging Face's format out."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor, nn

from bertfast.config import PRESETS, ElectraConfig, EncoderConfig
from bertfast.data.packing import Batches
from bertfast.data.store import TokenStore
from bertfast.data.tokenizer import TOKENIZER_FILES, SpecialIds, save_tokenizer
from bertfast.data.words import continuations
from bertfast.errors import BertfastError
from bertfast.hub import (
    check_tokenizer_fits,
    load,
    load_config,
    load_tokenizer,
    load_weights,
    make_folder,
    write_atomically,
)
from bertfast.model import ARCHITECTURES, ElectraForMaskedLM, ElectraForPreTraining, member_class
from bertfast.model.models import MaskedLMModel
from bertfast.packed import PackedBatch

from . import card
from .checkpoint import (
    checkpoints,
    clean,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from .config import PretrainConfig
from .graph import GraphedStep
from .joint import (
    GENERATOR,
    Distillation,
    ReplacedTokenDetection,
    generator_config,
    saved_models,
    start_from_teacher,
)
from .memory import keep_freed_memory
from .metrics import LiveBar, MetricsLog
from .optimizer import build_optimizer, clip_gradients, linear_schedule, set_rate
from .options import takes_fields_of
from .precision import Masters
from .seeds import dropout_seed

TASKS = (
    "mlm",
    "nsp",
    "sop",
    "rtd",
    "soft",
    "cosine",
)  # whose losses and counts a model's output may have


class Interrupted(Exception):
    """The run was told to stop (Ctrl-C, SIGTERM); it wrote a checkpoint first. Its argument is the
    signal's number.
    """


@dataclass(frozen=True)
class PretrainResult:
    """Where a run ended: its folder, the steps done, and the last logged numbers."""

    out: Path
    steps: int
    last: dict[str, Any]


@takes_fields_of(PretrainConfig)
def pretrain(
    data: tuple[str, ...] | list[str],
    tokenizer: str,
    out: str,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> PretrainResult:
    """Pretrains a BERT; the command ``bertfast pretrain`` as a function.

    Args:
        data: files of text.
        tokenizer: folder of the tokenizer.
        out: folder of the run.
        resume: go on from the run's last checkpoint (from step 0 where there is none), to the same
            losses bit for bit.
        on_log: called with each logged line.
        options: the other fields of `PretrainConfig`.

    Raises:
        BertfastError: an option, a file or the folder cannot be used, or the loss became NaN; what
            was there is kept.
        Interrupted: after a checkpoint, on SIGINT or SIGTERM.
    """
    config = PretrainConfig(data=tuple(data), tokenizer=str(tokenizer), out=str(out), **options)
    run = Path(config.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.cuda_graph and device.type != "cuda":
        raise BertfastError(
            "cuda-graph needs a GPU that PyTorch can use, and there is none here; leave it out"
        )
    words = load_tokenizer(config.tokenizer)
    model = _build_model(config, words)
    fresh = _claim(run, config, resume)
    with _locked(run):
        try:
            batches = _prepare(config, run, model, words, device)
        except BertfastError:
            if (
                fresh
            ):  # nothing was trained: leave no folder that would stand in the way of the next try
                shutil.rmtree(run)
            raise
        result = _Trainer(config, run, model.to(device), batches, device, on_log).train(resume)
        _write_cards(config, run, model, result)
        return result


def _write_cards(
    config: PretrainConfig, run: Path, model: nn.Module, result: PretrainResult
) -> None:
    for place, saved in saved_models(model).items():
        if (run / place / card.FILE).exists():
            # Somebody wrote one, or the run was complete before.
            continue
        name = (run / place).absolute().name
        architecture = type(saved).__name__
        text = card.pretraining_card(config, name, architecture, result.steps, result.last)
        write_atomically(
            run / place / card.FILE,
            lambda path, text=text: path.write_text(text, encoding="utf-8"),  # type: ignore[misc]
        )


def _prepare(
    config: PretrainConfig,
    run: Path,
    model: nn.Module,
    words: Tokenizer,
    device: torch.device,
) -> Batches:
    """Puts what does not change into the run's folder, and opens its data."""
    clean(run)
    special = SpecialIds(words, config.tokenizer)
    for place, saved in saved_models(model).items():
        save_tokenizer(
            words,
            run / place,
            saved.config.max_length,
            special,
            segments=saved.config.type_vocab_size > 1,
        )
        text = json.dumps(saved.config.to_dict(type(saved).__name__), indent=2) + "\n"
        write_atomically(
            run / place / "config.json",
            lambda path, text=text: path.write_text(text, encoding="utf-8"),  # type: ignore[misc]
        )
    vocab_size = saved_models(model)[""].config.vocab_size
    batches = Batches(
        TokenStore.build(config.data, words, run / "tokens", config.text_field),
        special,
        vocab_size,
        config.seq_len,
        config.batch_tokens,
        config.objective,
        config.masking,
        config.seed,
        device,
        config.mask_unit,
        None if config.mask_unit == "token" else continuations(words, vocab_size),
    )
    batches.plan(0)  # says now if the corpus cannot serve the objective
    return batches


class _Trainer:
    """The loop and what it carries from step to step."""

    def __init__(
        self,
        config: PretrainConfig,
        run: Path,
        model: nn.Module,
        batches: Batches,
        device: torch.device,
        on_log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.run, self.model, self.batches, self.device = (
            config,
            run,
            model.train(),
            batches,
            device,
        )
        self.on_log = on_log
        self.masters = Masters(model, config.precision)
        self.optimizer = build_optimizer(self.masters, config.lr, config.weight_decay)
        self.graphed = None
        if config.cuda_graph or (
            config.cuda_graph is None and device.type == "cuda" and config.accumulation == 1
        ):
            self.graphed = GraphedStep(
                model, self.optimizer, config.clip_norm, batches.budget(), device
            )
        self.tokens, self.seconds = 0, 0.0
        self.window = _Window()
        self.last: dict[str, Any] = {}

    def train(self, resume: bool) -> PretrainResult:
        keep_freed_memory()
        config = self.config
        assert config.warmup is not None
        start = self._restore() if resume else 0
        if start >= config.steps:
            print(f"bertfast: {self.run} is complete at step {start}", file=sys.stderr)
            return PretrainResult(self.run, start, self.last)
        log = MetricsLog(self.run, start)
        window = self.window
        parts = self.batches.iterate(start * config.accumulation)
        clock = time.monotonic() - window.elapsed
        with LiveBar(config.steps, start) as bar, _signals() as stop:
            for step in range(start, config.steps):
                rate = config.lr * linear_schedule(step, config.warmup, config.steps)
                epoch, loss, norm = self._update(step, rate, parts)
                self._refuse_nan(step + 1, loss, norm)
                self.tokens += window.step_tokens()

                done = step + 1
                if done % config.log_every == 0 or done == config.steps:
                    now = time.monotonic()
                    self.seconds += now - clock
                    line = window.flush(
                        now - clock, rate, float(norm), self.tokens, epoch, self.seconds
                    )
                    clock = now
                    log.write(done, line)
                    self.last = {"step": done, **line}
                    bar.advance(done, _numbers(line))
                    if self.on_log is not None:
                        self.on_log(self.last)
                if done % config.checkpoint_every == 0 or done == config.steps or stop:
                    window.elapsed = time.monotonic() - clock
                    self._save(done)
                if stop and done < config.steps:
                    log.close()
                    raise Interrupted(stop[0])
        log.close()
        return PretrainResult(self.run, config.steps, self.last)

    def _update(
        self, step: int, rate: float, parts: Iterator[tuple[int, PackedBatch]]
    ) -> tuple[int, Tensor, Tensor]:
        """The epoch, the loss of the last part, and the gradients' norm, of the update with index
        ``step``.
        """
        config = self.config
        for part in range(config.accumulation):
            epoch, batch = next(parts)
            batch, seed = batch.to(self.device), dropout_seed(config.seed, step, part)
            if self.graphed is not None and batch.fits(self.graphed.budget):
                output, norm = self.graphed(batch, seed, rate, step + 1)
                self.window.add(output, batch.num_tokens, batch.num_sequences)
                return epoch, output.loss, norm
            shaped = batch if self.device.type == "cuda" else batch.pad_to(*batch.sizes.rounded())
            output = self.model(shaped, seed=seed)
            (output.loss / config.accumulation).backward()
            if config.accumulation > 1:
                self.masters.accumulate()
            self.window.add(output, batch.num_tokens, batch.num_sequences)
        norm = clip_gradients(self.optimizer, config.clip_norm)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return epoch, output.loss.detach(), norm

    def _refuse_nan(self, step: int, loss: Tensor, norm: Tensor) -> None:
        if math.isfinite(float(norm)) and math.isfinite(float(loss)):
            return
        kept = checkpoints(self.run)
        where = (
            f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
        )
        raise BertfastError(
            f"step {step}: the loss is {float(loss)} and the gradient norm {float(norm)}; stopped, {where}. "
            "A lower --lr or a longer --warmup may help"
        )

    def _save(self, step: int) -> None:
        models = saved_models(self.model)
        paths = [
            Path(place) / name for place in models for name in (*TOKENIZER_FILES, "config.json")
        ]
        files = {
            str(path): (self.run / path).read_text(encoding="utf-8")
            for path in paths
            if (self.run / path).is_file()
        }
        weights = {place: self.masters.of(model) for place, model in models.items()}
        moments = optimizer_tensors(self.optimizer, self.masters.names, self.masters.weights)
        values = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "window": self.window.state(),
            "last": self.last,
        }
        save_checkpoint(self.run, step, files, weights, moments, values)

    def _restore(self) -> int:
        found = checkpoints(self.run)
        if not found:
            print(
                f"bertfast: {self.run} has no checkpoint yet; starting from step 0", file=sys.stderr
            )
            return 0
        state = load_checkpoint(found[-1])
        with torch.no_grad():
            for place, model in saved_models(self.model).items():
                kept = state.weights.get(place, {})
                for name, weight in self.masters.of(model).items():
                    if name not in kept or kept[name].shape != weight.shape:
                        raise BertfastError(
                            f"{found[-1]}: has no weight {name} of shape {tuple(weight.shape)}; it is another model's"
                        )
                    weight.copy_(kept[name])
        self.masters.refresh()
        restore_optimizer(self.optimizer, self.masters.names, self.masters.weights, state.moments)
        self.tokens, self.seconds = (
            int(state.values.get("tokens", 0)),
            float(state.values.get("seconds", 0.0)),
        )
        self.window.restore(state.values.get("window", {}))
        self.last = state.values.get("last", {})
        return int(state.values["step"])


class _Window:
    """Sums over the steps since the last logged line; they stay on the device until the line is
    written.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.parts = self.tokens = self.sequences = 0
        self.elapsed = 0.0
        self.unread = 0

    def state(self) -> dict[str, Any]:
        """What a resume needs, so that the next line averages over the same steps."""
        sums = {name: float(value) for name, value in self.sums.items()}
        return {
            "sums": sums,
            "parts": self.parts,
            "tokens": self.tokens,
            "sequences": self.sequences,
            "elapsed": self.elapsed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in state.get("sums", {}).items()
        }
        self.parts, self.tokens, self.sequences = (
            state.get(name, 0) for name in ("parts", "tokens", "sequences")
        )
        self.elapsed = state.get("elapsed", 0.0)

    def add(self, output: Any, tokens: int, sequences: int) -> None:
        parts = [f"{task}_{kind}" for task in TASKS for kind in ("loss", "correct", "count")]
        for name in ("loss", *parts):
            value = getattr(output, name, None)
            if value is not None:
                value = value.detach().double()
                self.sums[name] = (
                    value + self.sums[name].to(value.device) if name in self.sums else value
                )
        self.parts += 1
        self.tokens += tokens
        self.unread += tokens
        self.sequences += sequences

    def step_tokens(self) -> int:
        """Tokens since this was last asked."""
        tokens, self.unread = self.unread, 0
        return tokens

    def flush(
        self, elapsed: float, rate: float, norm: float, tokens: int, epoch: int, seconds: float
    ) -> dict[str, Any]:
        """The line for metrics.jsonl, averaged over the window; starts a new one."""
        sums = {name: float(value) for name, value in self.sums.items()}
        line = {"loss": sums["loss"] / self.parts}
        sums.setdefault("mlm_loss", sums["loss"])
        for task in TASKS:
            if f"{task}_loss" in sums:
                line[f"{task}_loss"] = sums[f"{task}_loss"] / self.parts
            if f"{task}_correct" in sums:
                line[f"{task}_accuracy"] = sums[f"{task}_correct"] / max(
                    sums.get(f"{task}_count", self.sequences), 1
                )
        line |= {
            "tokens_per_second": self.tokens / elapsed if elapsed > 0 else 0.0,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": tokens,
            "epoch": epoch,
            "seconds": seconds,
        }
        self.__init__()  # type: ignore[misc]
        return line


def _numbers(line: dict[str, Any]) -> str:
    return f"loss {line['loss']:.3f}  mlm acc {line['mlm_accuracy']:.3f}  {line['tokens_per_second']:,.0f} tok/s"


def _build_model(config: PretrainConfig, tokenizer: Tokenizer) -> nn.Module:
    torch.manual_seed(config.seed)
    entries = (
        max(tokenizer.get_vocab().values()) + 1
    )  # published vocabularies have ids without a token
    own: dict[str, Any] = {
        "vocab_size": entries,
        "pad_token_id": SpecialIds(tokenizer, config.tokenizer).pad,
    }
    if config.model in PRESETS:
        shape = EncoderConfig.preset(config.model, **own)
    elif config.starts_random:
        shape = replace(EncoderConfig.from_json_file(config.model), **own)
    else:
        shape = load_config(config.model)
    if config.seq_len > shape.max_length:
        raise BertfastError(
            f"seq-len is {config.seq_len} and the model has {shape.max_length} positions"
        )
    check_tokenizer_fits(tokenizer, shape, config.tokenizer)
    if config.starts_random and shape.padding_row != shape.pad_token_id:
        raise BertfastError(
            f"{config.tokenizer}: gives padding the id {shape.pad_token_id} and {shape.model_type} "
            f"counts positions past the id {shape.padding_row}; take its own tokenizer, or train "
            "one with bertfast tokenizer --type mpnet"
        )
    if config.objective == "rtd":
        return _detection(config, shape)
    head = {"mlm+nsp": "BertForPreTraining", "mlm+sop": "AlbertForPreTraining"}.get(
        config.objective
    )
    if head and not isinstance(shape, ARCHITECTURES[head].config_class):
        raise _wrong_member(config, shape, head)
    model = (ARCHITECTURES[head] if head else member_class(shape, "ForMaskedLM"))(shape)
    if not config.starts_random:
        load_weights(model, config.model, new_head_ok=True)
    if config.objective != "distill":
        return model
    assert isinstance(model, MaskedLMModel)
    assert config.teacher is not None
    teacher = load(config.teacher)
    if not isinstance(teacher, MaskedLMModel):
        raise BertfastError(
            f"{config.teacher}: is a {type(teacher).__name__}, which has no masked-LM head to learn from"
        )
    if load_tokenizer(config.teacher).get_vocab() != tokenizer.get_vocab():
        raise BertfastError(
            f"{config.tokenizer}: is not the tokenizer of the teacher {config.teacher}; give --tokenizer {config.teacher}"
        )
    both = Distillation(model, teacher)
    if config.starts_random and not start_from_teacher(model, teacher):
        print(
            f"bertfast: {config.model} is wider or deeper than its teacher, or of other shapes; it starts from random weights",
            file=sys.stderr,
        )
    if shape.hidden_size != teacher.config.hidden_size:
        print("bertfast: the widths differ, so the cosine loss is left out", file=sys.stderr)
    return both


def _detection(config: PretrainConfig, shape: EncoderConfig) -> ReplacedTokenDetection:
    if not isinstance(shape, ElectraConfig):
        raise _wrong_member(config, shape, "ElectraForPreTraining")
    discriminator = ElectraForPreTraining(shape)
    folder = None if config.starts_random else Path(config.model)
    told = folder is not None and (folder / GENERATOR).is_dir()
    own = (
        load_config(folder / GENERATOR)
        if folder is not None and told
        else generator_config(shape, config.generator_size)
    )
    assert isinstance(own, ElectraConfig)
    generator = ElectraForMaskedLM(own)
    if folder is not None:
        load_weights(discriminator, folder, new_head_ok=True)
        if told:
            load_weights(generator, folder / GENERATOR)
    return ReplacedTokenDetection(discriminator, generator)


def _wrong_member(config: PretrainConfig, shape: EncoderConfig, head: str) -> BertfastError:
    fitting = [
        name for name, (cls, _) in PRESETS.items() if cls is ARCHITECTURES[head].config_class
    ]
    return BertfastError(
        f"objective is {config.objective!r}, whose head is {head}'s, and {config.model} is a {shape.model_type} model; "
        f"take one of {', '.join(fitting)}, or another --objective"
    )


def _claim(run: Path, config: PretrainConfig, resume: bool) -> bool:
    """Makes the run's folder and returns True, or checks that this run may go on in it and returns
    False.
    """
    # Hidden files are what a run killed in its first moments leaves.
    occupied = run.exists() and (
        not run.is_dir() or any(not path.name.startswith(".") for path in run.iterdir())
    )
    if not occupied:
        make_folder(run)
        write_atomically(
            run / "config.yaml", lambda path: path.write_text(config.to_yaml(), encoding="utf-8")
        )
        return True
    if not resume:
        raise BertfastError(
            f"{run}: exists already; choose another --out, or add --resume to go on with that run"
        )
    try:
        saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BertfastError(
            f"{run}: is no pretraining run (its config.yaml: {' '.join(str(error).split())})"
        ) from error
    now = {**asdict(config), "data": list(config.data)}
    free = ("out", "checkpoint_every", "log_every")  # these change nothing in what is computed
    changed = [name for name in now if name not in free and saved.get(name) != now[name]]
    if changed:
        shown = ", ".join(f"{name} was {saved.get(name)!r}, is {now[name]!r}" for name in changed)
        raise BertfastError(f"{run}: a resumed run keeps its options, but {shown}")
    return False


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keeps a second process out of the run."""
    with open(run / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BertfastError(f"{run}: another process is training there") from None
        yield


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM put their number into, so that the step ends and a checkpoint
    is written.
    """
    caught: list[int] = []

    def handler(number: int, _frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {
            number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not in the main thread: the program around decides
        yield caught
        return
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)
