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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor

from bertfast.config import PRESETS, EncoderConfig
from bertfast.data.packing import Batches
from bertfast.data.store import TokenStore
from bertfast.data.tokenizer import TOKENIZER_FILES, SpecialIds, save_tokenizer
from bertfast.data.words import continuations
from bertfast.errors import BertfastError
from bertfast.hub import check_tokenizer_fits, load_config, load_tokenizer, load_weights, make_folder, write_atomically
from bertfast.model import PreTrainedModel, member_class
from bertfast.packed import PackedBatch

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
from .memory import keep_freed_memory
from .metrics import LiveBar, MetricsLog
from .optimizer import build_optimizer, clip_gradients, linear_schedule, set_rate
from .precision import Masters
from .seeds import dropout_seed


class Interrupted(Exception):
    """The run was told to stop (Ctrl-C, SIGTERM); it wrote a checkpoint first. Its argument is the signal's number."""


@dataclass(frozen=True)
class PretrainResult:
    """Where a run ended: its folder, the steps done, and the last logged numbers."""

    out: Path
    steps: int
    last: dict[str, Any]


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
        resume: go on from the run's last checkpoint (from step 0 where there is none), to the same losses bit for bit.
        on_log: called with each logged line.
        options: the other fields of `PretrainConfig`.

    Raises:
        BertfastError: an option, a file or the folder cannot be used, or the loss became NaN; what was there is kept.
        Interrupted: after a checkpoint, on SIGINT or SIGTERM.
    """
    config = PretrainConfig(data=tuple(data), tokenizer=str(tokenizer), out=str(out), **options)
    run = Path(config.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.cuda_graph and device.type != "cuda":
        raise BertfastError("cuda-graph needs a GPU that PyTorch can use, and there is none here; leave it out")
    words = load_tokenizer(config.tokenizer)
    model = _build_model(config, words)
    fresh = _claim(run, config, resume)
    with _locked(run):
        try:
            batches = _prepare(config, run, model, words, device)
        except BertfastError:
            if fresh:  # nothing was trained: leave no folder that would stand in the way of the next try
                shutil.rmtree(run)
            raise
        return _Trainer(config, run, model.to(device), batches, device, on_log).train(resume)


def _prepare(
    config: PretrainConfig,
    run: Path,
    model: PreTrainedModel,
    words: Tokenizer,
    device: torch.device,
) -> Batches:
    """Puts what does not change into the run's folder, and opens its data."""
    clean(run)
    special = SpecialIds(words, config.tokenizer)
    save_tokenizer(words, run, model.config.max_length, special, segments=model.config.type_vocab_size > 1)
    text = json.dumps(model.config.to_dict(type(model).__name__), indent=2) + "\n"
    write_atomically(run / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    batches = Batches(
        TokenStore.build(config.data, words, run / "tokens", config.text_field),
        special,
        model.config.vocab_size,
        config.seq_len,
        config.batch_tokens,
        config.objective,
        config.masking,
        config.seed,
        device,
        config.mask_unit,
        None if config.mask_unit == "token" else continuations(words, model.config.vocab_size),
    )
    batches.plan(0)  # says now if the corpus cannot serve the objective
    return batches


class _Trainer:
    """The loop and what it carries from step to step."""

    def __init__(
        self,
        config: PretrainConfig,
        run: Path,
        model: PreTrainedModel,
        batches: Batches,
        device: torch.device,
        on_log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.run, self.model, self.batches, self.device = config, run, model.train(), batches, device
        self.on_log = on_log
        self.masters = Masters(model, config.precision)
        self.optimizer = build_optimizer(self.masters, config.lr, config.weight_decay)
        self.graphed = None
        if config.cuda_graph or (config.cuda_graph is None and device.type == "cuda" and config.accumulation == 1):
            self.graphed = GraphedStep(model, self.optimizer, config.clip_norm, batches.budget(), device)
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
                    line = window.flush(now - clock, rate, float(norm), self.tokens, epoch, self.seconds)
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

    def _update(self, step: int, rate: float, parts: Iterator[tuple[int, PackedBatch]]) -> tuple[int, Tensor, Tensor]:
        """The epoch, the loss of the last part, and the gradients' norm, of the update with index ``step``."""
        config = self.config
        for part in range(config.accumulation):
            epoch, batch = next(parts)
            batch, seed = batch.to(self.device), dropout_seed(config.seed, step, part)
            if self.graphed is not None and batch.fits(self.graphed.budget):
                output, norm = self.graphed(batch, seed, rate, step + 1)
                self.window.add(output, batch.num_tokens, batch.num_sequences)
                return epoch, output.loss, norm
            output = self.model(batch, seed=seed)
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
        where = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
        raise BertfastError(
            f"step {step}: the loss is {float(loss)} and the gradient norm {float(norm)}; stopped, {where}. "
            "A lower --lr or a longer --warmup may help"
        )

    def _save(self, step: int) -> None:
        paths = [self.run / name for name in (*TOKENIZER_FILES, "config.json")]
        files = {path.name: path.read_text(encoding="utf-8") for path in paths if path.is_file()}
        moments = optimizer_tensors(self.optimizer, self.masters.names, self.masters.weights)
        values = {"tokens": self.tokens, "seconds": self.seconds, "window": self.window.state(), "last": self.last}
        save_checkpoint(self.run, step, files, self.masters.named(), moments, values)

    def _restore(self) -> int:
        found = checkpoints(self.run)
        if not found:
            print(f"bertfast: {self.run} has no checkpoint yet; starting from step 0", file=sys.stderr)
            return 0
        state = load_checkpoint(found[-1])
        with torch.no_grad():
            for name, weight in self.masters.named().items():
                if name not in state.weights or state.weights[name].shape != weight.shape:
                    raise BertfastError(
                        f"{found[-1]}: has no weight {name} of shape {tuple(weight.shape)}; it is another model's"
                    )
                weight.copy_(state.weights[name])
        self.masters.refresh()
        restore_optimizer(self.optimizer, self.masters.names, self.masters.weights, state.moments)
        self.tokens, self.seconds = int(state.values.get("tokens", 0)), float(state.values.get("seconds", 0.0))
        self.window.restore(state.values.get("window", {}))
        self.last = state.values.get("last", {})
        return int(state.values["step"])


class _Window:
    """Sums over the steps since the last logged line; they stay on the device until the line is written."""

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
        self.sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state.get("sums", {}).items()}
        self.parts, self.tokens, self.sequences = (state.get(name, 0) for name in ("parts", "tokens", "sequences"))
        self.elapsed = state.get("elapsed", 0.0)

    def add(self, output: Any, tokens: int, sequences: int) -> None:
        for name in ("loss", "mlm_loss", "nsp_loss", "mlm_correct", "mlm_count", "nsp_correct"):
            value = getattr(output, name, None)
            if value is not None:
                value = value.detach().double()
                self.sums[name] = value + self.sums[name].to(value.device) if name in self.sums else value
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
        line["mlm_loss"] = sums.get("mlm_loss", sums["loss"]) / self.parts
        line["mlm_accuracy"] = sums["mlm_correct"] / max(sums["mlm_count"], 1)
        if "nsp_loss" in sums:
            line["nsp_loss"] = sums["nsp_loss"] / self.parts
            line["nsp_accuracy"] = sums["nsp_correct"] / self.sequences
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


def _build_model(config: PretrainConfig, tokenizer: Tokenizer) -> PreTrainedModel:
    torch.manual_seed(config.seed)
    if config.model in PRESETS:
        entries = max(tokenizer.get_vocab().values()) + 1  # published vocabularies have ids without a token
        pad = SpecialIds(tokenizer, config.tokenizer).pad
        shape = EncoderConfig.preset(config.model, vocab_size=entries, pad_token_id=pad)
    else:
        shape = load_config(config.model)
    if config.seq_len > shape.max_length:
        raise BertfastError(f"seq-len is {config.seq_len} and the model has {shape.max_length} positions")
    check_tokenizer_fits(tokenizer, shape, config.tokenizer)
    model = member_class(shape, "ForPreTraining" if config.objective in ("mlm+nsp", "mlm+sop") else "ForMaskedLM")(
        shape
    )
    if config.model not in PRESETS:
        load_weights(model, config.model, new_head_ok=True)
    return model


def _claim(run: Path, config: PretrainConfig, resume: bool) -> bool:
    """Makes the run's folder and returns True, or checks that this run may go on in it and returns False."""
    # Hidden files are what a run killed in its first moments leaves.
    occupied = run.exists() and (not run.is_dir() or any(not path.name.startswith(".") for path in run.iterdir()))
    if not occupied:
        make_folder(run)
        write_atomically(run / "config.yaml", lambda path: path.write_text(config.to_yaml(), encoding="utf-8"))
        return True
    if not resume:
        raise BertfastError(f"{run}: exists already; choose another --out, or add --resume to go on with that run")
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
    """A list that SIGINT and SIGTERM put their number into, so that the step ends and a checkpoint is written."""
    caught: list[int] = []

    def handler(number: int, _frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the program around decides
        yield caught
        return
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)
