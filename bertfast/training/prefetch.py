"""Batches made ahead of the step, in the same order and with the same bits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from bertfast.errors import BertfastError
from bertfast.kernels.threads import run_on_one_thread

T = TypeVar("T")
PATIENCE = 1.0  # seconds between looks at whether the worker still lives


@contextmanager
def ahead(items: Iterator[T], count: int) -> Iterator[Iterator[T]]:
    """The items, of which a worker thread makes up to ``count`` ahead; 0 makes each when it is due.

    An error in the worker is raised where its item was due. The worker ends with the block. Its
    own ops run on one thread: a second team of OpenMP's threads would take the step's processors.

    Raises:
        BertfastError: making an item fails, or the worker is gone.
    """
    if count == 0:
        yield items
        return
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    started, done = threading.Event(), threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not done.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            run_on_one_thread()
            started.set()
            for item in items:
                put(item, None)
                if done.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    def take() -> Iterator[T]:
        while True:
            try:
                item, error = made.get(timeout=PATIENCE)
            except queue.Empty:
                if worker.is_alive() or not made.empty():
                    continue
                raise BertfastError(
                    "the worker that makes the batches is gone; resume from the last checkpoint"
                ) from None
            if isinstance(error, StopIteration):
                return
            if isinstance(error, BertfastError):
                raise error
            if error is not None:
                raise BertfastError(
                    f"making a batch failed ({type(error).__name__}: {error})"
                ) from error
            assert item is not None
            yield item

    worker = threading.Thread(target=work, name="bertfast-batches", daemon=True)
    threads = torch.get_num_threads()
    worker.start()
    started.wait()
    # The number that any thread sets is the one of threads that come later.
    torch.set_num_threads(threads)
    try:
        yield take()
    finally:
        done.set()
        worker.join()
