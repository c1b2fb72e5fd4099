"""Trackers get a run's options, numbers and scores, offline; none of them can end a run."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import run_cli, sentences, write_model, write_table

import bertfast
from bertfast.errors import BertfastError
from bertfast.training import trackers
from bertfast.training.metrics import read_metrics
from bertfast.training.trackers import EVENTS, TRACKERS, Report, tracker_names

PRETRAIN: dict[str, Any] = {
    "objective": "mlm", "steps": 6, "batch_tokens": 128, "seq_len": 24, "log_every": 3
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model and texts, and every tracker told to stay on this machine."""
    write_model(tmp_path / "model")
    write_table(tmp_path / "train.tsv", sentences(24))
    lines = [text for text, _ in sentences(60)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path),
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(name, value)
    # MLflow leaves the experiment of the process's last run there.
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    return tmp_path


def pretrain(out: str = "run", **options: Any) -> Any:
    return bertfast.pretrain(["corpus.txt"], "model", out, model="model", **PRETRAIN, **options)


def pretrain_in_a_process(tracker: str) -> None:
    """The same in a process of its own: a client reads its settings once, and may write until the
    process ends.
    """
    options = {**PRETRAIN, "model": "model", "report_to": tracker}
    program = f"import bertfast; bertfast.pretrain(['corpus.txt'], 'model', 'run', **{options!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "the run goes on without it" not in done.stderr
    assert done.stdout == ""


def needs(tracker: str) -> None:
    if not TRACKERS[tracker].installed:
        pytest.skip(
            f"{tracker} is not installed: pip install 'bertfast[{TRACKERS[tracker].extra}]'"
        )


def test_mlflow_has_a_runs_options_numbers_and_final_scores(place: Path) -> None:
    needs("mlflow")
    result = pretrain(report_to="mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("bertfast")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["objective"] == "mlm"
    assert run.data.params["steps"] == "6"
    logged = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in logged] == [
        (line["step"], line["loss"]) for line in read_metrics("run")
    ]
    assert run.data.metrics["final/loss"] == result.last["loss"]


def test_mlflow_has_a_finetunings_scores_and_a_failed_run_as_failed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    from mlflow import MlflowClient

    done = bertfast.finetune(
        "model", "train.tsv", "train.tsv", "classifier", epochs=2, report_to="mlflow"
    )
    client = MlflowClient()
    experiment = client.get_experiment_by_name("bertfast").experiment_id
    (run,) = client.search_runs([experiment])
    scores = client.get_metric_history(run.info.run_id, "dev_accuracy")
    assert [score.value for score in scores] == [epoch["dev_accuracy"] for epoch in done.history]
    assert run.data.metrics["final/dev_accuracy"] == done.accuracy
    assert run.data.metrics["final/epoch"] == done.best_epoch

    monkeypatch.setattr(
        "bertfast.training.trainer.Trainer._update", lambda *_: pytest.fail("the update failed")
    )
    with pytest.raises(pytest.fail.Exception):
        pretrain(report_to="mlflow")
    assert client.search_runs([experiment])[0].info.status == "FAILED"


@pytest.mark.slow
def test_trackio_keeps_a_runs_options_and_numbers_on_this_machine(place: Path) -> None:
    needs("trackio")
    pretrain_in_a_process("trackio")
    (database,) = (place / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by id").fetchall()
        (config,) = connection.execute("select config from configs").fetchone()
    numbers = [(step, json.loads(text)) for step, text in rows]
    logged = [(step, values["loss"]) for step, values in numbers if "loss" in values]
    assert logged == [(line["step"], line["loss"]) for line in read_metrics("run")]
    assert json.loads(config)["objective"] == "mlm"


@pytest.mark.slow
def test_weights_and_biases_writes_offline_what_it_would_send(place: Path) -> None:
    needs("wandb")
    pretrain_in_a_process("wandb")
    (written,) = place.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    for name in ("gradient_norm", "final/loss", "batch_tokens"):
        assert name.encode() in content, name


def test_tensorboard_has_options_numbers_and_scores_in_the_result(place: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = bertfast.finetune(
        "model", "train.tsv", "train.tsv", "classifier", epochs=2, report_to="tensorboard"
    )
    events = EventAccumulator(f"classifier/{EVENTS}")
    events.Reload()
    accuracies = [event.value for event in events.Scalars("dev_accuracy")]
    assert accuracies == pytest.approx([epoch["dev_accuracy"] for epoch in done.history])
    assert events.Scalars("final/dev_accuracy")[0].value == pytest.approx(done.accuracy)
    (text,) = events.Tensors("options/text_summary")
    assert "batch_size" in text.tensor_proto.string_val[0].decode()


def test_a_resumed_runs_events_have_no_step_twice(place: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start in (0, 10):
        with Report(["tensorboard"], "run", {}) as report:
            report.on_start(None, start)  # type: ignore[arg-type]
            for step in (start + 10, start + 20):
                report.on_log(None, {"step": step, "loss": float(step)})  # type: ignore[arg-type]
    events = EventAccumulator(f"run/{EVENTS}")
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 30]


class Failing:
    """A tracker that fails at one of its three calls."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, 0

    def start(self, *_: object) -> Failing:
        self._call("start")
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls += 1
        self._call("log")

    def finish(self, failed: bool) -> None:
        self._call("finish")

    def _call(self, name: str) -> None:
        if name == self.at:
            raise ConnectionError("the server\nis gone")


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_one_line_and_the_run_goes_on(
    at: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Failing(at)
    monkeypatch.setitem(TRACKERS, "wandb", SimpleNamespace(start=failing.start, installed=True))
    assert pretrain(report_to="wandb").steps == 6
    said = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert said == [
        "bertfast: the tracker wandb failed (ConnectionError: the server is gone); the run goes on "
        "without it"
    ]
    assert failing.calls == {"start": 0, "log": 1, "finish": 3}[at]


def test_a_tracker_that_is_not_installed_names_the_extra(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for call in (
        lambda: pretrain(report_to="wandb"),
        lambda: bertfast.finetune("model", "train.tsv", "train.tsv", "out", report_to="wandb"),
    ):
        with pytest.raises(BertfastError, match=r"not installed; pip install 'bertfast\[wandb\]'"):
            call()
    assert not Path("run").exists()
    assert pretrain().steps == 6  # by itself it asks for none that is missing
    assert not (place / "run" / EVENTS).exists()


def test_names_are_read_as_hugging_face_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = SimpleNamespace(installed=True)
    for name in TRACKERS:
        monkeypatch.setitem(TRACKERS, name, installed)
    assert tracker_names("none") == ()
    assert tracker_names("all") == tuple(TRACKERS)
    assert tracker_names(["wandb, mlflow", "wandb"]) == ("wandb", "mlflow")
    with pytest.raises(BertfastError, match="names 'comet'"):
        tracker_names("comet")
    with pytest.raises(BertfastError, match="must be names"):
        tracker_names([3])  # type: ignore[list-item]


def test_the_command_line_takes_names_in_a_row_or_with_commas(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = ("--train", "train.tsv", "--dev", "train.tsv", "--out", "out", "--epochs", 1)
    for names in (("tensorboard,comet",), ("tensorboard", "comet")):
        done = run_cli(monkeypatch, capfd, "finetune", "model", *files, "--report_to", *names)
        assert (done.code, len(done.errors)) == (2, 1)
        assert "report-to names 'comet'" in done.err
    needs("tensorboard")
    done = run_cli(monkeypatch, capfd, "finetune", "model", *files, "--report-to", "tensorboard")
    assert done.code == 0
    assert list((place / "out" / EVENTS).glob("events.*"))


def test_a_resume_may_report_elsewhere(place: Path) -> None:
    pretrain(report_to="none", checkpoint_every=3)
    assert pretrain(report_to="tensorboard", resume=True).steps == 6
