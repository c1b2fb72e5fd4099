"""Servers for tests: one inside this process, whose worker is a thread, and one of its own."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from tiny import write_model

from bertfast.model import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from bertfast.serving.app import Access, Server
from bertfast.serving.limits import Limits
from bertfast.serving.served import Spec, load_served
from bertfast.serving.worker import Batch, Ready, computed

LABELS = {"id2label": {0: "bad", 1: "good"}}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "encoder": (BertModel, {}),
    "classifier": (BertForSequenceClassification, LABELS),
    "labels": (
        BertForSequenceClassification,
        {**LABELS, "problem_type": "multi_label_classification"},
    ),
    "reranker": (BertForSequenceClassification, {"id2label": {0: "LABEL_0"}}),
    "tagger": (BertForTokenClassification, {"id2label": {0: "O", 1: "B-THING"}}),
    "answerer": (BertForQuestionAnswering, {}),
    "chooser": (BertForMultipleChoice, {}),
    "words": (BertForMaskedLM, {}),
}


def write_models(place: Path) -> dict[str, Path]:
    """A small model of each kind, of random weights."""
    return {
        name: write_model(place / name, cls, **options) for name, (cls, options) in KINDS.items()
    }


class LocalWorker:
    """A thread in place of a worker process."""

    def __init__(self, call: Callable[[Any], None], models: dict[str, Any]) -> None:
        self.call, self.models = call, models
        self.batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, batch: Batch) -> None:
        """Computes a batch."""
        self.batches.put(batch)

    def stop(self) -> None:
        """Ends the thread."""
        self.batches.put(None)

    def _run(self) -> None:
        self.call(Ready())
        while (batch := self.batches.get()) is not None:
            self.call(computed(self.models, batch))


def local_server(
    folders: list[Path], limits: Limits | None = None, access: Access | None = None
) -> Server:
    """A server that computes in this process."""
    models = [load_served(Spec(folder.name, str(folder))) for folder in folders]
    by_name = {model.name: model for model in models}

    def start(call: Callable[[Any], None]) -> LocalWorker:
        return LocalWorker(call, by_name)

    return Server(models, limits or Limits(), start, access=access)


@contextmanager
def client_of(server: Server) -> Iterator[TestClient]:
    """A client of a server in this process."""
    with TestClient(server.app(), raise_server_exceptions=False) as client:
        yield client


@contextmanager
def serving(*args: object, command: str = "serve") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of ``bertfast serve ARGS`` on a free port; it is told to end
    when the block does.
    """
    given = [str(arg) for arg in (*args, "--port", 0, "--threads", 1)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bertfast", command, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise AssertionError(process.communicate(timeout=60)[1])
        yield address, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
