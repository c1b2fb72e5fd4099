"""Experiment trackers that a run reports to: TensorBoard, Weights & Biases, MLflow and Trackio.

Each is its own client, with its own settings: ``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``,
``TRACKIO_DIR`` and the like hold here as everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from bertfast.errors import BertfastError

from .trainer import Callback, Trainer

PROJECT = "bertfast"  # where the user's environment names none
EVENTS = "tensorboard"  # the folder of TensorBoard's events, below the run's


class Client(Protocol):
    """One run at a tracker."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Takes the numbers of a step."""

    def finish(self, failed: bool) -> None:
        """Sends what is left, and closes."""


class _TensorBoard:
    def __init__(self, name: str, folder: Path, options: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.options, self.make = folder / EVENTS, options, SummaryWriter
        self.writer: Any = None

    def log(self, values: dict[str, float], step: int) -> None:
        if self.writer is None:
            # A resumed run logs steps again that a stopped one had logged.
            self.writer = self.make(str(self.folder), purge_step=step)
            text = json.dumps(self.options, indent=4)
            self.writer.add_text("options", f"```\n{text}\n```", step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, failed: bool) -> None:
        if self.writer is not None:
            self.writer.close()


class _WeightsAndBiases:
    def __init__(self, name: str, folder: Path, options: dict[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        name = os.environ.get("WANDB_NAME", name)
        self.run = wandb.init(project=project, name=name, config=options)

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class _MLflow:
    def __init__(self, name: str, folder: Path, options: dict[str, Any]) -> None:
        import mlflow

        self.mlflow = mlflow
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=name, nested=mlflow.active_run() is not None)
        mlflow.log_params(options)

    def log(self, values: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics(values, step=step)

    def finish(self, failed: bool) -> None:
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


class _Trackio:
    def __init__(self, name: str, folder: Path, options: dict[str, Any]) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.trackio = trackio
        trackio.init(project=project, name=name, config=options)

    def log(self, values: dict[str, float], step: int) -> None:
        self.trackio.log(values, step=step)

    def finish(self, failed: bool) -> None:
        self.trackio.finish()


@dataclass(frozen=True)
class Tracker:
    """How a tracker is started, the package that it is, and the extra that brings it."""

    start: Callable[[str, Path, dict[str, Any]], Client]
    package: str
    extra: str

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


TRACKERS = {
    "tensorboard": Tracker(_TensorBoard, "tensorboard", "train"),
    "wandb": Tracker(_WeightsAndBiases, "wandb", "wandb"),
    "mlflow": Tracker(_MLflow, "mlflow", "mlflow"),
    "trackio": Tracker(_Trackio, "trackio", "trackio"),
}


def tracker_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """The trackers that ``report_to`` names: a name, names with commas between, or a list of such.

    "none" is no tracker, "all" is each that is installed.

    Raises:
        BertfastError: a name is no tracker's, or the tracker is not installed.
    """
    given = [given] if isinstance(given, str) else list(given)
    if not all(isinstance(part, str) for part in given):
        raise BertfastError(f"report-to is {given!r}; it must be names of trackers")
    names = [name.strip() for part in given for name in part.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    if names == ["all"]:
        return tuple(name for name, tracker in TRACKERS.items() if tracker.installed)
    for name in names:
        if name not in TRACKERS:
            raise BertfastError(
                f"report-to names {name!r}; it must be none, all, or of {', '.join(TRACKERS)}"
            )
        if not TRACKERS[name].installed:
            raise BertfastError(
                f"report-to names {name}, which is not installed; pip install "
                f"'bertfast[{TRACKERS[name].extra}]'"
            )
    return tuple(dict.fromkeys(names))


class Report(Callback):
    """Sends a run's options, logged numbers, held-out scores and final scores to trackers.

    It is a context manager too, which closes what it opened. Trackers start with the updates, so
    that a run with none left to make leaves no trace. One that cannot be started, or fails later,
    is left out with a line on standard error; it never ends the run.

    Args:
        names: of trackers, as `tracker_names` gives them.
        run: the run's folder; its name is the run's at the trackers.
        options: of the run, plain values.
        events: the folder for TensorBoard's own; None is the run's.
    """

    def __init__(
        self,
        names: Iterable[str],
        run: str | Path,
        options: dict[str, Any],
        events: Path | None = None,
    ) -> None:
        self.names, self.run, self.options = tuple(names), Path(run).absolute(), options
        self.events = events or self.run
        self.clients: dict[str, Client] = {}
        self.step = 0

    def on_start(self, trainer: Trainer, step: int) -> None:
        for name in self.names:
            with self._guarded(name):
                start = TRACKERS[name].start
                self.clients[name] = start(self.run.name, self.events, self.options)

    def on_log(self, trainer: Trainer, line: dict[str, Any]) -> None:
        values = {name: value for name, value in line.items() if name != "step"}
        self._log(values, line["step"])

    def on_evaluate(self, trainer: Trainer, step: int, scores: dict[str, float]) -> None:
        self._log(scores, step)

    def finish(self, scores: dict[str, Any]) -> None:
        """Sends the final scores, as ``final/NAME``."""
        self._log({f"final/{name}": value for name, value in scores.items()}, self.step)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, client in list(self.clients.items()):
            with self._guarded(name):
                client.finish(failed=kind is not None)
        self.clients.clear()

    def _log(self, values: dict[str, Any], step: int) -> None:
        self.step = step
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, client in list(self.clients.items()):
            with self._guarded(name):
                client.log(numbers, step)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Leaves a tracker out where it fails; what it prints goes to standard error."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self.clients.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(
                f"bertfast: the tracker {name} failed ({reason}); the run goes on without it",
                file=sys.stderr,
            )
