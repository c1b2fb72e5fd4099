"""``bertfast push``: what goes to the Hub and what stays, with a Hub that only notes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from tiny import Outcome, run_cli, write_model

from bertfast.model import BertForSequenceClassification


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished model's folder, with much beside it that is nobody else's business."""
    monkeypatch.chdir(tmp_path)
    folder = write_model(tmp_path / "classifier", BertForSequenceClassification)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    (folder / "labels.json").write_text('["bad", "good"]')
    for name in ("training_args.bin", "predict.py", "notes.pkl", ".env", "config.yaml"):
        (folder / name).write_text("private")
    for name in ("checkpoints/step-1", "generator", ".git", "1_Pooling"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(b"weights")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


class FakeApi:
    """Notes the calls; what ``failure`` holds is raised by the call of that name."""

    calls: list[tuple[str, dict[str, Any]]]
    failure: dict[str, Exception]

    def __init__(self, **_: object) -> None:
        pass

    def _note(self, name: str, **arguments: Any) -> None:
        if name in self.failure:
            raise self.failure[name]
        self.calls.append((name, arguments))

    def whoami(self) -> None:
        self._note("whoami")

    def create_repo(self, repo_id: str, **arguments: Any) -> None:
        self._note("create_repo", repo_id=repo_id, **arguments)

    def create_branch(self, repo_id: str, **arguments: Any) -> None:
        self._note("create_branch", repo_id=repo_id, **arguments)

    def create_commit(self, repo_id: str, **arguments: Any) -> SimpleNamespace:
        self._note("create_commit", repo_id=repo_id, **arguments)
        return SimpleNamespace(commit_url="https://hub.example/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    api = type("Api", (FakeApi,), {"calls": [], "failure": {}})
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    return api


@pytest.fixture
def push(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    return lambda *args: run_cli(monkeypatch, capfd, "push", *args)


def uploaded(hub: type[FakeApi]) -> dict[str, bytes]:
    """The content of each file that was sent, by its path."""
    found = {}
    for operation in dict(hub.calls)["create_commit"]["operations"]:
        with operation.as_file() as file:
            found[operation.path_in_repo] = file.read()
    return found


SAFE = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "labels.json",
    "generator/model.safetensors",
    "1_Pooling/model.safetensors",
    "1_Pooling/config.json",
}
PRIVATE = ("training_args.bin", "predict.py", "notes.pkl", ".env", "config.yaml")


def test_a_dry_run_lists_the_files_and_asks_nobody(
    push: Callable[..., Outcome], hub: type[FakeApi]
) -> None:
    done = push("classifier", "owner/name", "--dry-run")
    assert done.code == 0, done
    listed = {line.split()[-1] for line in done.out.splitlines()}
    assert listed >= SAFE
    assert not listed & set(PRIVATE)
    assert not any(name.startswith(("checkpoints", ".git")) for name in listed)
    assert all(name in done.err for name in PRIVATE)
    assert hub.calls == []


def test_only_known_files_go_with_the_card(
    push: Callable[..., Outcome], hub: type[FakeApi]
) -> None:
    done = push("classifier", "owner/name", "--private", "--revision", "v2", "--message", "m")
    assert (done.code, done.out) == (0, "https://hub.example/commit/1\n")
    calls = dict(hub.calls)
    assert list(calls) == ["whoami", "create_repo", "create_branch", "create_commit"]
    assert calls["create_repo"] == {"repo_id": "owner/name", "private": True, "exist_ok": True}
    assert calls["create_branch"]["branch"] == calls["create_commit"]["revision"] == "v2"
    assert calls["create_commit"]["commit_message"] == "m"
    sent = uploaded(hub)
    assert sent.keys() >= SAFE
    assert not sent.keys() & set(PRIVATE)
    assert not any(name.startswith(("checkpoints", ".git")) for name in sent)
    assert sent["generator/model.safetensors"] == b"weights"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/me/data/train.tsv", "train.tsv"),
        ("~/data/train.tsv", "train.tsv"),
        ("../me/train.tsv", "train.tsv"),
        (r"C:\Users\me\train.tsv", "train.tsv"),
        ("data/train.tsv", "data/train.tsv"),
        ("owner/name", "owner/name"),
    ],
)
def test_no_folder_of_this_machine_goes_with_the_metrics(
    path: str, shown: str, model: Path, push: Callable[..., Outcome], hub: type[FakeApi]
) -> None:
    settings = {"train": path, "epochs": 3, "task": "classification", "report_to": []}
    metrics = {"dev_accuracy": 0.5, "settings": settings}
    (model / "metrics.json").write_text(json.dumps(metrics))
    assert push("classifier", "owner/name").code == 0
    sent = json.loads(uploaded(hub)["metrics.json"])
    assert sent == {**metrics, "settings": {**settings, "train": shown}}
    assert json.loads((model / "metrics.json").read_text()) == metrics


def test_a_broken_metrics_file_is_one_line(
    model: Path, push: Callable[..., Outcome], hub: type[FakeApi]
) -> None:
    (model / "metrics.json").write_text("{")
    done = push("classifier", "owner/name")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "metrics.json: cannot be read as JSON" in done.errors[0]
    assert hub.calls == []


def response(status: int) -> Any:
    """What an error of the Hub holds of its answer."""
    return SimpleNamespace(status_code=status, headers={}, request=None, url="https://hub.example")


@pytest.mark.parametrize(
    ("call", "failure", "said"),
    [
        ("whoami", errors.LocalTokenNotFoundError("no token"), "hf auth login"),
        ("whoami", errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        ("whoami", ConnectionError("no route"), "cannot be reached"),
        (
            "create_repo",
            errors.HfHubHTTPError("403 Forbidden", response=response(403)),
            "has your token the right",
        ),
        ("create_commit", TimeoutError("timed out"), "cannot be reached"),
    ],
)
def test_what_goes_wrong_is_one_line(
    call: str, failure: Exception, said: str, push: Callable[..., Outcome], hub: type[FakeApi]
) -> None:
    hub.failure[call] = failure
    done = push("classifier", "owner/name")
    assert (done.code, len(done.errors)) == (2, 1)
    assert said in done.errors[0]


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("README.md", "has no README.md"),
        ("config.json", "has no config.json"),
        ("model.safetensors", ""),
    ],
)
def test_half_a_model_is_refused(
    gone: str, said: str, model: Path, push: Callable[..., Outcome], hub: type[FakeApi]
) -> None:
    (model / gone).unlink()
    for other in ("generator", "1_Pooling"):
        (model / other / "model.safetensors").unlink()
    done = push("classifier", "owner/name")
    assert (done.code, len(done.errors)) == (2, 1)
    assert (said or "has no model.safetensors") in done.errors[0]
    assert hub.calls == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere", "owner/name"], "no such folder"),
        (["classifier", "owner/name/more"], "is no id of a repository"),
        (["classifier", "owner/na me"], "is no id of a repository"),
        (["classifier"], "REPO"),
    ],
)
def test_wrong_arguments_are_one_line(
    args: list[str], said: str, push: Callable[..., Outcome], hub: type[FakeApi]
) -> None:
    done = push(*args, "--dry-run")
    assert (done.code, len(done.errors)) == (2, 1)
    assert said in done.errors[0]
