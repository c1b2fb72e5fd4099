"""The processes that compute: each holds every model, takes batches from a pipe and sends back what
the models made of them.

A batch that fails is computed again, each request's part of it by itself, so that one input cannot
fail its neighbours. A worker ends when its pipe does: with the server, however that ended.
"""

from __future__ import annotations

import io
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

from bertfast.errors import BertfastError

from .served import Served, Spec, load_served


class Part(NamedTuple):
    """A request's payloads in a batch."""

    payloads: list[Any]


class Batch(NamedTuple):
    """What a worker computes at once: parts of requests, for one operation of one model."""

    number: int
    model: str
    operation: str
    parts: list[Part]


class Failure(NamedTuple):
    """Why a request's part of a batch has no outputs; whether that is the client's doing."""

    message: str
    expected: bool


class Ready(NamedTuple):
    """A worker has its models."""


class Done(NamedTuple):
    """The outputs of each part of a batch, or its `Failure`, and the seconds that it took."""

    number: int
    results: list[Any]
    seconds: float


class Died(NamedTuple):
    """A worker has ended, for a reason that it said, or "" where it could say none."""

    reason: str = ""


class Worker(Protocol):
    """What a batch is sent to; it calls back, on any thread, with `Ready`, `Done` and `Died`."""

    def send(self, batch: Batch) -> None:
        """Computes a batch, after those that were sent before."""

    def stop(self) -> None:
        """Ends the worker; no call comes back after."""


def computed(models: Mapping[str, Served], batch: Batch) -> Done:
    """A batch's outputs."""
    model, started = models[batch.model], time.perf_counter()
    try:
        payloads = [payload for part in batch.parts for payload in part.payloads]
        outputs = model.compute(batch.operation, payloads)
        results, start = [], 0
        for part in batch.parts:
            results.append(outputs[start : start + len(part.payloads)])
            start += len(part.payloads)
    except Exception:
        results = [_alone(model, batch.operation, part) for part in batch.parts]
    return Done(batch.number, results, time.perf_counter() - started)


def _alone(model: Served, operation: str, part: Part) -> Any:
    try:
        return model.compute(operation, part.payloads)
    except BertfastError as error:
        return Failure(str(error), True)
    except Exception as error:
        # The message of any other error may hold a request's text.
        return Failure(type(error).__name__, False)


def run(
    pipe: Connection, specs: Sequence[Spec], threads: int | None, prepare: Callable[[], None] | None
) -> None:
    """The worker process.

    Args:
        pipe: of batches, and of what is made of them.
        specs: the models.
        threads: of PyTorch's; None for its own choice.
        prepare: called first, for tasks of the user's own.
    """
    # The server ends its workers itself, once they have done what was taken.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        if prepare is not None:
            prepare()
        models = {spec.name: load_served(spec) for spec in specs}
    except (BertfastError, OSError, MemoryError) as error:
        _send(pipe, Died(str(error) or type(error).__name__))
        return
    _send(pipe, Ready())
    while True:
        try:
            batch = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            _send(pipe, computed(models, batch))
        except OSError:
            return


class _Plain(pickle.Pickler):
    """Tensors as arrays: PyTorch's own way through a pipe is shared memory, lost with its maker."""

    def reducer_override(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor) and not value.is_sparse:
            if value.dtype == torch.bfloat16:
                value = value.float()
            return torch.from_numpy, (value.detach().cpu().numpy(),)
        return NotImplemented


def _send(pipe: Connection, message: Any) -> None:
    buffer = io.BytesIO()
    _Plain(buffer, 5).dump(message)
    pipe.send_bytes(buffer.getbuffer())


class ProcessWorker:
    """A worker process; arguments as of `run`.

    Args:
        call: called back with `Ready`, `Done` and `Died`, on a thread of this worker's.
    """

    def __init__(
        self,
        call: Callable[[Any], None],
        specs: Sequence[Spec],
        threads: int | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.call, self.stopped = call, False
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=run, args=(theirs, list(specs), threads, prepare), daemon=True
        )
        self.process.start()
        theirs.close()
        self.batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self.process.pid

    def send(self, batch: Batch) -> None:
        """Computes a batch, after those that were sent before."""
        self.batches.put(batch)

    def stop(self) -> None:
        """Ends the worker; no call comes back after."""
        self.stopped = True
        self.process.kill()
        self.reader.join()

    def _write(self) -> None:
        while (batch := self.batches.get()) is not None:
            try:
                _send(self.pipe, batch)
            except OSError:
                return  # the reader says that the worker has ended

    def _read(self) -> None:
        died = Died()
        while True:
            try:
                message = pickle.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):
                break
            if isinstance(message, Died):
                died = message
            elif not self.stopped:
                self.call(message)
        self.process.join()
        self.pipe.close()
        self.batches.put(None)
        if not self.stopped:
            self.call(died)
