"""A model's name becomes a folder: one of the user's, or a snapshot of the Hub, without network."""

from __future__ import annotations

import fnmatch
import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hub_cache import REVISION, put_in_cache, use_cache
from tiny import write_model

from bertfast.errors import BertfastError
from bertfast.resolve import MODEL_FILES, resolve


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def message(*args: Any, **options: Any) -> str:
    """The one line that refuses this name."""
    with pytest.raises(BertfastError) as caught:
        resolve(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_is_itself(model: Path) -> None:
    for name in (model, str(model)):
        source = resolve(name)
        assert (source.folder, source.revision) == (model, None)
    assert str(resolve(model)) == f"the folder {model}"


def test_a_folder_wins_over_a_hub_id(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path / "cache")
    put_in_cache(model, "model", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    assert resolve("model").revision is None


@pytest.mark.parametrize("name", ["roberta-base", "org/name"])
def test_an_id_is_found_in_the_cache_offline(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path / "cache")
    snapshot = put_in_cache(model, name, tmp_path / "cache")
    for revision in (None, "main", REVISION):
        source = resolve(name, revision)
        assert (source.folder, source.revision) == (snapshot, REVISION)
    assert str(source) == f"{name} of the Hugging Face Hub, revision {REVISION}"


def test_an_id_that_is_not_in_the_cache_is_refused_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path / "cache")
    assert "HF_HUB_OFFLINE" in message("roberta-base")


def test_a_revision_that_is_not_in_the_cache_is_refused_offline(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path / "cache")
    put_in_cache(model, "org/name", tmp_path / "cache")
    assert "not in the cache" in message("org/name", "v2")


def test_half_a_model_in_the_cache_is_refused_offline(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path / "cache")
    snapshot = put_in_cache(model, "org/name", tmp_path / "cache")
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    assert "in part" in message("org/name")
    assert resolve("org/name", tokenizer_only=True).folder == snapshot


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "a/b/c", "config.json", "no where"])
def test_what_is_no_id_is_never_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    use_cache(monkeypatch, tmp_path / "cache", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("asked"))
    assert "no such folder" in message(name)


def test_a_path_is_never_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(monkeypatch, tmp_path / "cache")
    assert "no such folder" in message(Path("roberta-base"))


def test_a_file_is_refused(model: Path) -> None:
    assert "is a file" in message(str(model / "config.json"))


def test_a_folder_has_no_revision(model: Path) -> None:
    assert "only a Hub id has revisions" in message(model, "main")


def test_an_endpoint_that_nobody_serves_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path / "cache", "http://127.0.0.1:9")
    assert "cannot be reached (" in message("org/name")
    # What is in the cache serves all the same.
    put_in_cache(model, "org/name", tmp_path / "cache")
    assert resolve("org/name").revision == REVISION


def test_an_endpoint_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_cache(monkeypatch, tmp_path / "cache", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert "cannot be reached (" in message("org/name")
    assert time.monotonic() - start < 60


class _Hub(BaseHTTPRequestHandler):
    """The Hub's answers for one model, out of a folder."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        names = [str(file.relative_to(self.folder)) for file in files]
        if path.startswith("/org/name/resolve/"):
            name = path.split("/", 5)[5]
            self.asked.append(name)
            data, headers = (self.folder / name).read_bytes(), {"ETag": f'"{name}"'}
        elif path.startswith("/api/models/org/name/tree/"):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": name}
                for name, file in zip(names, files, strict=True)
            ]
            data, headers = json.dumps(entries).encode(), {}
        elif path in ("/api/models/org/name", "/api/models/org/name/revision/main"):
            siblings = [{"rfilename": name} for name in names]
            info = {"id": "org/name", "sha": REVISION, "siblings": siblings}
            data, headers = json.dumps(info).encode(), {}
        else:
            code = (
                "RevisionNotFound" if path.startswith("/api/models/org/name/") else "RepoNotFound"
            )
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for header in (
            {"Content-Length": str(len(data)), "X-Repo-Commit": REVISION} | headers
        ).items():
            self.send_header(*header)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def served(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    """A Hub on this machine that serves the model as org/name."""
    handler = type("Hub", (_Hub,), {"folder": model, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        use_cache(monkeypatch, tmp_path / "cache", f"http://127.0.0.1:{server.server_port}", 10)
        yield handler
        server.shutdown()


def test_an_id_is_downloaded_once_and_then_serves_offline(
    served: type[_Hub], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "predict.py").write_text("import os")
    source = resolve("org/name")
    assert source.revision == REVISION
    assert (source.folder / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    assert not [name for name in served.asked if name.endswith((".bin", ".py"))]
    use_cache(monkeypatch, tmp_path / "cache")
    assert resolve("org/name") == source


def test_a_model_of_pickled_weights_alone_is_refused(served: type[_Hub], model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickled weights are not loaded" in message("org/name")


def test_an_id_that_the_hub_does_not_have_is_refused(served: type[_Hub]) -> None:
    assert "the Hub has no such model" in message("org/nowhere")
    assert "has no revision 'v9'" in message("org/name", "v9")


@pytest.mark.parametrize(
    "name", ["training_args.bin", "pytorch_model.bin", "modeling.py", "optimizer.pt", "a.pkl"]
)
def test_nothing_that_could_run_is_downloaded(name: str) -> None:
    assert not any(fnmatch.fnmatch(name, pattern) for pattern in MODEL_FILES)
