"""The one training loop: batches in, updates, logged numbers, evaluations and checkpoints out.

What a user replaces is an argument: the model, the batches, the optimizer, the schedule, the
callbacks. `Trainer.train` is the loop; what it calls stands below it.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bertfast import openmp
from bertfast.errors import BertfastError
from bertfast.model import PreTrainedModel
from bertfast.packed import Budget, PackedBatch
from bertfast.progress import LiveBar
from bertfast.ranks import Ranks
from bertfast.seeds import step_seed

from .checkpoint import (
    KEEP,
    check_branch,
    checkpoints,
    clean,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    resume_from,
    save_checkpoint,
)
from .graph import GraphedStep
from .memory import keep_freed_memory
from .metrics import UNEVEN, MetricsLog, Window
from .optimizer import BETAS, EPSILON, AdamW, build_optimizer, clip_at_next_step
from .parallel import Parallel, every, share_batches
from .precision import Masters, say_what_it_saves
from .prefetch import ahead

UNSAVED = "weight"  # the kind, in the training state, of trained weights that no model saves


class Interrupted(Exception):
    """The run was told to stop (Ctrl-C, SIGTERM); it wrote a checkpoint first. Its argument is the
    signal's number.
    """


class Diverged(BertfastError):
    """The loss or a gradient is no number any more."""


class Batches(Protocol):
    """Where batches come from; a list of `PackedBatch` serves too."""

    def iterate(self, start: int = 0) -> Iterator[tuple[int, PackedBatch]]:
        """(epoch, batch) of number ``start`` and every later one; the same from wherever it
        starts.
        """

    # One may have ``logged(number)`` too: what a line of metrics.jsonl says beside, by name.


class Callback:
    """What is told of a run. Each method does nothing unless a subclass has its own.

    An error in one ends the run with one line; checkpoints that were written are kept.
    """

    def on_start(self, trainer: Trainer, step: int) -> None:
        """Updates begin, after the ``step`` that a resumed run had made; not where all are made."""

    def on_step(self, trainer: Trainer, step: int) -> None:
        """An update was made, the ``step``-th."""

    def on_log(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl, with its ``step``."""

    def before_evaluate(self, trainer: Trainer, step: int) -> None:
        """The model is about to be evaluated, after that many updates."""

    def on_evaluate(self, trainer: Trainer, step: int, scores: dict[str, float]) -> None:
        """The held-out scores after an update."""

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        """A checkpoint was written."""


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: its folder, the steps done, the last logged numbers, and the best
    evaluation with its ``step`` (empty without evaluations).
    """

    out: Path
    steps: int
    last: dict[str, Any]
    best: dict[str, Any]


class Trainer:
    """Trains a model on packed batches.

    Args:
        model: called as ``model(batch, seed=seed)``. Its output, one of ours or a dict, has a
            ``loss``. It may have ``X_loss``, ``X_correct`` and ``X_count`` tensors, which are
            logged.
        batches: an object with `Batches.iterate`, or a list of batches, an epoch of which is a pass
            over it.
        out: folder of the run: metrics.jsonl, checkpoints and the newest one's weights.
        steps: updates, all in all.
        optimizer: None is AdamW with BERT's groups; or any `torch.optim.Optimizer` over the model's
            parameters; or a function that makes one of a list of parameters.
        lr: peak rate of the default optimizer; an own one keeps the rates of its groups as peaks.
        weight_decay, betas, epsilon: of the default optimizer.
        rates: shares of the rate for some of the model's parameters, with the default optimizer.
        schedule: the share of the peak rate for the update with that index; None is 1.
        precision: "fp32", or "bf16" with float32 master weights.
        clip_norm: the joint norm that gradients are scaled down to; None leaves them.
        accumulation: batches of an update, each a forward of its own; the loss is the mean over
            all that they predict. One without sequences adds nothing. Several ranks compute equally
            many of them.
        seed: of the dropouts.
        callbacks: see `Callback`.
        evaluate: gives scores of the model in evaluation mode; called every ``evaluate_every``
            updates and at the end.
        best: the score whose highest value marks the best checkpoint, which is then kept too.
        lowest: whether the lowest value does.
        patience: evaluations in a row without a better one after which the run ends.
        checkpoint_every, log_every: updates; a checkpoint is written at the end too, and a line is
            logged at each evaluation.
        keep: how many of the newest checkpoints are kept.
        branch: a checkpoint of another run, from which this one goes on where it has none of its
            own yet. Its ``inputs`` must be the same but for "options" and "held-out data".
        prefetch: batches that a worker thread makes ahead; 0 makes each when it is due.
        device: None is the GPU where there is one.
        budget: sizes that batches are padded to for a CUDA graph of the update; None for no graph.
        models: what is saved, by folder below the checkpoint's; None is the model itself.
        files: small text files by path, saved beside the weights.
        inputs: digests of what decides the run and stands outside of it; a resume refuses others.
            Of several the first is saved, and each is taken.
        label: of the progress bar.
        ranks: the processes that share each update's batches, joined; None is this one alone. All
            are given the same arguments. Rank 0 writes the run's files and tells the callbacks.
        reduction: "fp32" or "bf16", in which gradients travel between ranks.

    Raises:
        BertfastError: an argument that cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches | Sequence[PackedBatch],
        *,
        out: str | Path,
        steps: int,
        optimizer: torch.optim.Optimizer
        | Callable[[list[Tensor]], torch.optim.Optimizer]
        | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = BETAS,
        epsilon: float = EPSILON,
        rates: Mapping[nn.Parameter, float] | None = None,
        schedule: Callable[[int], float] | None = None,
        precision: str = "fp32",
        clip_norm: float | None = 1.0,
        accumulation: int = 1,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        evaluate_every: int | None = None,
        best: str | None = None,
        lowest: bool = False,
        patience: int | None = None,
        checkpoint_every: int = 1000,
        log_every: int = 10,
        keep: int = KEEP,
        branch: str | Path | None = None,
        prefetch: int = 2,
        device: torch.device | str | None = None,
        budget: Budget | None = None,
        models: Mapping[str, nn.Module] | None = None,
        files: dict[str, str] | None = None,
        inputs: Mapping[str, str | tuple[str, ...]] | None = None,
        label: str = "train",
        ranks: Ranks | None = None,
        reduction: str = "fp32",
    ) -> None:
        for name, value in (
            ("steps", steps),
            ("accumulation", accumulation),
            ("checkpoint_every", checkpoint_every),
            ("log_every", log_every),
            ("keep", keep),
            ("evaluate_every", steps if evaluate_every is None else evaluate_every),
            ("patience", 1 if patience is None else patience),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BertfastError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if not hasattr(batches, "iterate"):
            batches = _Repeated(batches)
        self.run, self.steps, self.batches = Path(out), steps, batches
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).train()
        self.models = {"": model} if models is None else dict(models)
        self.schedule = schedule or (lambda step: 1.0)
        self.clip_norm, self.accumulation, self.seed = clip_norm, accumulation, seed
        self.ranks = ranks or Ranks()
        self.share = share_batches(accumulation, self.ranks)
        self.callbacks = tuple(callbacks) if self.ranks.first else ()
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.best_by, self.lowest, self.patience = best, lowest, patience
        self.checkpoint_every, self.log_every, self.keep = checkpoint_every, log_every, keep
        self.prefetch, self.label = prefetch, label
        self.branch = None if branch is None else Path(branch)
        self.inputs = {
            name: (value,) if isinstance(value, str) else value
            for name, value in (inputs or {}).items()
        }
        self.files = files or {}
        if self.ranks.first:
            say_what_it_saves(precision, self.device)
        self.masters = Masters(model, precision)
        self.parallel = Parallel(self.model, self.masters, self.ranks, reduction)
        if optimizer is None:
            self.optimizer: torch.optim.Optimizer = build_optimizer(
                self.masters,
                lr,
                weight_decay,
                self.masters.shares(rates or {}),
                betas,
                epsilon,
            )
        elif isinstance(optimizer, torch.optim.Optimizer):
            self.optimizer = self.masters.adopt(optimizer)
        else:
            self.optimizer = optimizer(list(self.masters.weights))
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.graphed = None
        if budget is not None:
            if not isinstance(self.optimizer, AdamW) or clip_norm is None or accumulation > 1:
                raise BertfastError(
                    "a CUDA graph needs the default optimizer, clip_norm and accumulation 1"
                )
            self.graphed = GraphedStep(model, self.optimizer, clip_norm, budget, self.device)
        self.tokens, self.seconds = 0, 0.0
        self.window = Window()
        self.last: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.evaluations: list[dict[str, Any]] = []

    def train(self, resume: bool = False) -> TrainResult:
        """Trains up to ``steps``.

        Args:
            resume: go on from the run's last whole checkpoint (from step 0 where there is none), to
                the same numbers bit for bit.

        Raises:
            BertfastError: the run exists and is not resumed, a file cannot be used or written, or a
                batch or a callback fails. Or the loss is no number. Checkpoints are kept.
            Interrupted: after a checkpoint, on SIGINT or SIGTERM.
        """
        keep_freed_memory()
        if self.device.type == "cpu" and self.ranks.first:
            openmp.warn_if_late(torch.get_num_threads())
        start = self._start(resume)
        if start >= self.steps or self._gave_up():
            if self.ranks.first:
                print(f"bertfast: {self.run} is complete at step {start}", file=sys.stderr)
            return TrainResult(self.run, start, self.last, self.best)
        self._tell("on_start", start)
        log = MetricsLog(self.run, start) if self.ranks.first else None
        self.clock = time.monotonic() - self.window.elapsed
        with (
            # Outermost: the launcher's own signal must not end the rank that says what went wrong.
            _signals(patient=self.ranks.size > 1) as stop,
            self.ranks.errors(),
            LiveBar(self.steps, start, self.label, self.ranks.first) as bar,
            ahead(self._made(start * self.accumulation + self.ranks.rank), self.prefetch) as parts,
        ):
            before: _Told | None = None
            for step in range(start, self.steps):
                rate = self._set_rates(step)
                epoch, loss, norm = self._update(step, rate, parts)
                self.tokens += self.window.step_tokens()
                done, now = step + 1, self._told(step + 1, loss, norm, bool(stop))
                # The host reads the step before, so that no step waits. A rank's signal reaches
                # all ranks so, and they stop after the same update.
                stopped = bool(stop) if self.ranks.size == 1 else self._read(before)
                scores = self._scored(done)
                is_best = scores is not None and self._note_best(done, scores)
                last = done == self.steps or self._gave_up()
                logs = done % self.log_every == 0 or last or scores is not None
                saves = done % self.checkpoint_every == 0 or last or stopped
                # Nothing is written unread.
                for values in (before, now if logs or saves or scores else None):
                    self._read(values)
                before = now
                if logs or saves or is_best:
                    self._gather()
                if logs:
                    self._log(log, bar, done, rate, float(norm), epoch)
                self._tell("on_step", done)
                if saves or is_best:
                    self._save(done)
                if stopped and not last:
                    if log is not None:
                        log.close()
                    raise Interrupted(stop[0] if stop else signal.SIGTERM)
                if last:
                    break
                self.ranks.moved()
        if log is not None:
            log.close()
        return TrainResult(self.run, done, self.last, self.best)

    def _start(self, resume: bool) -> int:
        """The index of the first update; what a checkpoint holds is restored."""
        if not self.ranks.first:
            self.ranks.wait("started")
            return self._restore() if resume or self.branch is not None else 0
        start = self._first_start(resume)
        self.ranks.note("started")
        return start

    def _first_start(self, resume: bool) -> int:
        if resume:
            clean(self.run)
            return self._restore()
        if checkpoints(self.run):
            raise BertfastError(
                f"{self.run}: has checkpoints already; choose another folder, or resume that run"
            )
        self.run.mkdir(parents=True, exist_ok=True)
        return 0 if self.branch is None else self._restore()

    def _made(self, start: int) -> Iterator[tuple[int, PackedBatch]]:
        """The batches, for a GPU in pinned memory, from which the copy does not wait."""
        for epoch, batch in every(self.batches, start, self.ranks.size):
            cuda = self.device.type == "cuda" and batch.input_ids.device.type == "cpu"
            yield epoch, batch.pin_memory() if cuda else batch

    def _set_rates(self, step: int) -> float:
        share = self.schedule(step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        return self.optimizer.param_groups[0]["lr"]

    def _update(
        self, step: int, rate: float, parts: Iterator[tuple[int, PackedBatch]]
    ) -> tuple[int, Tensor, Tensor]:
        """The epoch, the loss of a part, and the gradients' norm, of the update with index
        ``step``.
        """
        taken = [next(parts) for _ in range(self.share)]
        weights, uneven = self.parallel.weights([batch for _, batch in taken], self.accumulation)
        if uneven is not None:
            self.window.add_uneven(uneven)
        loss = torch.zeros((), device=self.device)
        epoch = taken[0][0]  # of the update's first batch on rank 0, however many there are
        for number, (_, batch) in enumerate(taken):
            last = number == self.share - 1
            batch = batch.to(self.device, non_blocking=True)
            if not batch.num_sequences and not (last and self.ranks.size > 1):
                self.window.parts += 1
                continue
            seed = step_seed(self.seed, step, number * self.ranks.size + self.ranks.rank)
            if self.graphed is not None and batch.fits(self.graphed.budget):
                output, norm = self.graphed(batch, seed, rate, step + 1)
                self.window.add(output, batch.num_tokens, batch.num_sequences)
                return epoch, output["loss"], norm
            numbers = self.parallel.backward(batch, seed, weights[number], self.accumulation, last)
            loss = numbers["loss"].detach()
            summed = last and self.ranks.size > 1  # and where they belong already
            if not summed and (self.accumulation > 1 or not isinstance(self.optimizer, AdamW)):
                self.masters.accumulate()
            self.window.add(numbers, batch.num_tokens, batch.num_sequences)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not isinstance(self.optimizer, AdamW):  # which writes the model's copies itself
            self.masters.refresh()
        return epoch, loss, norm

    def _clip(self) -> Tensor:
        """The norm of the gradients, which the update takes scaled down to ``clip_norm``."""
        most = math.inf if self.clip_norm is None else self.clip_norm
        if isinstance(self.optimizer, AdamW):
            return clip_at_next_step(self.optimizer, most)
        return torch.nn.utils.clip_grad_norm_(self.masters.weights, most)

    def _told(self, step: int, loss: Tensor, norm: Tensor, stops: bool) -> _Told:
        """What the host is to be told of a step: of all ranks the losses and signals together."""
        values = torch.stack([loss.detach().double(), torch.full_like(loss, stops).double()])
        loss, stopped = self.parallel.total(values).unbind()
        return _Told(step, torch.stack([loss, norm.detach().double(), stopped]))

    def _read(self, values: _Told | None) -> bool:
        """Refuses a step without numbers; whether a rank was told to stop by then."""
        if values is None:
            return False
        loss, norm, stopped = values.read()
        if math.isfinite(norm) and math.isfinite(loss):
            return stopped > 0
        kept = checkpoints(self.run)
        where = (
            f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
        )
        raise Diverged(
            f"step {values.step}: the loss is {loss} and the gradient norm {norm}; stopped, "
            f"{where}. A lower --lr or a longer --warmup may help"
        )

    def score(self, step: int) -> dict[str, float]:
        """What ``evaluate`` says of the model after ``step`` updates; kept in ``evaluations``."""
        if self.evaluate is None:
            raise BertfastError("evaluate is None, so there is nothing to score with; give one")
        self._tell("before_evaluate", step)
        self.ranks.pause()
        self.model.eval()
        with torch.no_grad():
            scores = self.evaluate(self.model)
        self.model.train()
        self.evaluations.append({"step": step, **scores})
        return scores

    def _scored(self, done: int) -> dict[str, float] | None:
        """The scores where an evaluation is due."""
        due = done == self.steps or (self.evaluate_every and done % self.evaluate_every == 0)
        if self.evaluate is None or not due:
            return None
        scores = self.score(done)
        self._tell("on_evaluate", done, scores)
        return scores

    def _note_best(self, done: int, scores: dict[str, float]) -> bool:
        """Whether these scores are the best so far."""
        if self.best_by is None:
            self.best = {"step": done, **scores}
            return False
        if self.best:
            gain = scores[self.best_by] - self.best[self.best_by]
            if not (gain < 0 if self.lowest else gain > 0):
                return False
        self.best = {"step": done, **scores}
        return True

    def _gave_up(self) -> bool:
        """Whether as many evaluations as the patience have passed since the best one."""
        if self.patience is None or not self.best:
            return False
        later = sum(scores["step"] > self.best["step"] for scores in self.evaluations)
        return later >= self.patience

    def _gather(self) -> None:
        """Brings the ranks' sums to rank 0."""
        if self.ranks.size == 1:
            return
        self.window.gather(self.parallel.total, keep=self.ranks.first)
        tokens = torch.tensor(float(self.tokens), dtype=torch.float64, device=self.device)
        self.tokens = int(self.parallel.total(tokens)) * self.ranks.first

    def _log(
        self, log: MetricsLog | None, bar: LiveBar, done: int, rate: float, norm: float, epoch: int
    ) -> None:
        now = time.monotonic()
        elapsed = now - self.clock
        self.seconds += elapsed
        self.clock = now
        if log is None:
            self.window = Window()
            return
        line = self.window.flush(elapsed, rate, norm, self.tokens, epoch, self.seconds)
        if hasattr(self.batches, "logged"):
            line |= self.batches.logged((done - 1) * self.accumulation)
        log.write(done, line)
        self.last = {"step": done, **line}
        accuracy = [
            f"{name.removesuffix('_accuracy')} acc {value:.3f}"
            for name, value in line.items()
            if name.endswith("_accuracy")
        ][:1]
        speed = f"{line['tokens_per_second']:,.0f} tok/s"
        if UNEVEN[0] in line:
            most = max(line[name] for name in UNEVEN)
            speed += f"  heaviest rank +{most:.1%}"
        bar.advance(done, "  ".join([f"loss {line['loss']:.3f}", *accuracy, speed]))
        self._tell("on_log", self.last)

    def _tell(self, hook: str, *values: Any) -> None:
        for callback in self.callbacks:
            try:
                getattr(callback, hook)(self, *values)
            except (BertfastError, Interrupted):
                raise
            except Exception as error:
                kept = checkpoints(self.run)
                where = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint"
                raise BertfastError(
                    f"the callback {type(callback).__name__} failed in {hook} "
                    f"({type(error).__name__}: {error}); stopped, {where}"
                ) from error

    def _save(self, step: int) -> None:
        self.ranks.pause()
        if not self.ranks.first:
            return
        self.window.elapsed = time.monotonic() - self.clock
        weights = {subfolder: self.masters.of(model) for subfolder, model in self.models.items()}
        tensors, groups = optimizer_state(self.optimizer, self.masters.by_weight)
        tensors |= {f"{UNSAVED}.{name}": weight for name, weight in self._unsaved().items()}
        values = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "window": self.window.state(),
            "last": self.last,
            "best": self.best,
            "evaluations": self.evaluations,
            "inputs": {name: digests[0] for name, digests in self.inputs.items()},
            "optimizer": groups,
        }
        best = self.best.get("step") if self.best_by else None
        files = {**self._config_files(), **self.files}
        folder = save_checkpoint(
            self.run, step, files, weights, tensors, values, keep=self.keep, best=best
        )
        self._tell("on_checkpoint", folder)

    def _unsaved(self) -> dict[str, Tensor]:
        """The trained weights that are in none of ``models``: a resume needs them alone."""
        parts = [part for model in self.models.values() for part in self.masters.of(model).values()]
        saved = {weight.data_ptr() for weight in parts}
        return {
            name: weight
            for name, weight in self.masters.named().items()
            if weight.data_ptr() not in saved
        }

    def _config_files(self) -> dict[str, str]:
        """The config.json of each model that has one."""
        return {
            str(Path(subfolder) / "config.json"): json.dumps(
                model.config.to_dict(type(model).__name__), indent=2, ensure_ascii=False
            )
            + "\n"
            for subfolder, model in self.models.items()
            if isinstance(model, PreTrainedModel)
        }

    def _restore(self) -> int:
        found = resume_from(self.run)
        branches = found is None and self.branch is not None
        if branches:
            assert self.branch is not None
            found = self.branch, load_checkpoint(self.branch)
        if found is None:
            if self.ranks.first:
                print(
                    f"bertfast: {self.run} has no checkpoint yet; starting from step 0",
                    file=sys.stderr,
                )
            self.run.mkdir(parents=True, exist_ok=True)
            return 0
        folder, state = found
        saved = state.values.get("inputs", {})
        free = ("options", "held-out data") if branches else ()
        changed = [
            name
            for name, digest in saved.items()
            if name not in free and digest not in self.inputs.get(name, ())
        ]
        if branches:
            check_branch(state, folder, self.steps)
        if changed:
            raise BertfastError(
                f"{self.run}: the {' and the '.join(changed)} changed since {folder} was written, "
                "so the run cannot go on as it was. Put back what it was, "
                "or start a new run with another --out"
            )
        own = {
            key.removeprefix(f"{UNSAVED}."): state.moments.pop(key)
            for key in list(state.moments)
            if key.startswith(f"{UNSAVED}.")
        }
        groups = [
            (state.weights.get(subfolder, {}), self.masters.of(model))
            for subfolder, model in self.models.items()
        ]
        with torch.no_grad():
            for kept, weights in [*groups, (own, self._unsaved())]:
                for name, weight in weights.items():
                    if name not in kept or kept[name].shape != weight.shape:
                        raise BertfastError(
                            f"{folder}: has no weight {name} of shape {tuple(weight.shape)}; "
                            "it is another model's"
                        )
                    weight.copy_(kept[name])
        self.masters.refresh()
        restore_optimizer(
            self.optimizer, self.masters.by_weight, state.moments, state.values.get("optimizer")
        )
        if self.ranks.first:
            self.tokens = int(state.values.get("tokens", 0))
            if not branches:
                self.window.restore(state.values.get("window", {}))
        self.seconds = float(state.values.get("seconds", 0.0))
        if branches:
            return int(state.values["step"])
        self.last, self.best = state.values.get("last", {}), state.values.get("best", {})
        self.evaluations = state.values.get("evaluations", [])
        return int(state.values["step"])


class _Repeated:
    """A list of batches, over and over."""

    def __init__(self, batches: Sequence[PackedBatch]) -> None:
        if not batches:
            raise BertfastError("batches is empty; there must be one at least")
        self.batches = batches

    def iterate(self, start: int = 0) -> Iterator[tuple[int, PackedBatch]]:
        number = start
        while True:
            yield number // len(self.batches), self.batches[number % len(self.batches)]
            number += 1


class _Told:
    """A step's loss, gradient norm and signals on their way to the host."""

    def __init__(self, step: int, values: Tensor) -> None:
        self.step = step
        self.event = None
        if values.is_cuda:
            host = torch.empty(len(values), dtype=values.dtype, pin_memory=True)
            self.values = host.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.values = values

    def read(self) -> list[float]:
        """Waits for this step alone, not for what was launched after it."""
        if self.event is not None:
            self.event.synchronize()
        return self.values.tolist()


@contextmanager
def _signals(patient: bool = False) -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM put their number into, so that the step ends and a checkpoint
    is written. A second one ends at once unless it is patient: a launcher sends its own.
    """
    caught: list[int] = []

    def handler(number: int, _frame: object) -> None:
        if caught and not patient:
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
