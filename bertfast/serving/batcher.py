"""Packs the inputs of all clients' requests into batches by tokens, continuously.

An input waits in the lane of its model, its operation and its length: short inputs share no batch
with long ones. A lane's inputs go in the order of the time at which each request would have been
served by itself. So the thousandth text of one request comes after another's first. The lane whose
first input is due the earliest is served next. It goes as soon as it fills a batch, or its first
input has waited long enough. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .limits import Limits, Refused
from .worker import Batch, Died, Done, Failure, Part, Ready, Worker

DEPTH = 2  # batches that a worker has at a time, one computed and one waiting
TRIES = 3  # workers that a request may lose before it is refused
LONG = 8  # an input of more than the batch's tokens over this is long
# Seconds before a worker is started in the place of one that computed nothing: least and most.
BACKOFF = (0.1, 10.0)


@dataclass(eq=False)
class Job:
    """The inputs of a request for one operation, and what was made of them."""

    model: str
    operation: str
    payloads: Sequence[Any]
    tokens: Sequence[int]
    done: asyncio.Future[list[Any]]
    outputs: list[Any]
    left: int
    tries: int = 0


@dataclass(order=True)
class _Entry:
    """An input that waits; ``due`` orders a lane."""

    due: float
    order: int
    arrived: float = field(compare=False)
    job: Job = field(compare=False)
    index: int = field(compare=False)

    @property
    def tokens(self) -> int:
        """Of the input."""
        return self.job.tokens[self.index]


@dataclass
class _Lane:
    """Inputs that may share a batch."""

    entries: list[_Entry] = field(default_factory=list)
    tokens: int = 0

    def push(self, entry: _Entry) -> None:
        """Lets an input wait."""
        heapq.heappush(self.entries, entry)
        self.tokens += entry.tokens

    def pop(self) -> _Entry:
        """The input that is due first."""
        entry = heapq.heappop(self.entries)
        self.tokens -= entry.tokens
        return entry

    def drop(self, job: Job) -> None:
        """Takes a job's inputs out."""
        kept = [entry for entry in self.entries if entry.job is not job]
        if len(kept) < len(self.entries):
            heapq.heapify(kept)
            self.entries, self.tokens = kept, sum(entry.tokens for entry in kept)


class _Slot:
    """The place of a worker: the one that is there, what it has, and when it is started again."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.ready = False
        self.batches: dict[int, list[tuple[Job, list[int]]]] = {}
        self.delay = BACKOFF[0]


class Batcher:
    """Jobs in, outputs out.

    Attributes:
        rate: tokens that a second takes, as it was of late.
        deaths: of workers that were not asked to end.
        failure: why no worker could be started at first; "" where one was.

    Args:
        limits: of batches.
        start_worker: starts a worker, given what it calls back.
        workers: how many.
        observe: called with the tokens, the sequences and the seconds of each batch.
    """

    def __init__(
        self,
        limits: Limits,
        start_worker: Callable[[Callable[[Any], None]], Worker],
        workers: int = 1,
        observe: Callable[[int, int, float], None] = lambda *_: None,
    ) -> None:
        self.limits, self.start_worker, self.observe = limits, start_worker, observe
        self.slots = [_Slot() for _ in range(workers)]
        self.lanes: dict[tuple[str, str, int], _Lane] = {}
        self.rate, self.deaths, self.failure = 20_000.0, 0, ""
        self.stopping = False
        self.first = asyncio.Event()  # a worker is ready, or none could be started
        self._order, self._numbers = itertools.count(), itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Starts the workers, from within the event loop."""
        self.loop = asyncio.get_running_loop()
        for slot in self.slots:
            self._start(slot)

    async def stop(self) -> None:
        """Ends the workers."""
        self.stopping = True
        workers = [slot.worker for slot in self.slots if slot.worker is not None]
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in workers))

    @property
    def ready(self) -> bool:
        """Whether a worker can compute."""
        return any(slot.ready for slot in self.slots)

    @property
    def waiting(self) -> int:
        """Tokens that wait."""
        return sum(lane.tokens for lane in self.lanes.values())

    @property
    def computing(self) -> int:
        """Batches that workers have."""
        return sum(len(slot.batches) for slot in self.slots)

    def submit(
        self, model: str, operation: str, payloads: Sequence[Any], tokens: Sequence[int]
    ) -> Job:
        """Lets inputs wait; the job's ``done`` gives the outputs in their order.

        Cancelling ``done`` takes what still waits out of the queue, with `forget`.
        """
        future: asyncio.Future[list[Any]] = self.loop.create_future()
        count = len(payloads)
        job = Job(model, operation, payloads, tokens, future, [None] * count, count)
        if not count:
            future.set_result([])
            return job
        self._wait(job, range(count))
        self._pump()
        return job

    def forget(self, job: Job) -> None:
        """Takes a job's inputs out of the queue."""
        job.done.cancel()
        for key, lane in list(self.lanes.items()):
            lane.drop(job)
            if not lane.entries:
                del self.lanes[key]

    def retry_after(self) -> float:
        """Seconds until what waits now is computed."""
        return max(1.0, math.ceil(self.waiting / self.rate))

    def _wait(self, job: Job, indices: Sequence[int]) -> None:
        now = time.monotonic()
        due = now
        for index in sorted(indices, key=job.tokens.__getitem__):
            due += job.tokens[index] / self.rate
            # A request that lost a worker is computed by itself: it may be what that died of.
            kind = job.tokens[index] * LONG > self.limits.max_batch_tokens
            lane = id(job) if job.tries else kind
            key = (job.model, job.operation, lane)
            self.lanes.setdefault(key, _Lane()).push(
                _Entry(due, next(self._order), now, job, index)
            )

    def _pump(self) -> None:
        """Sends what can be sent, and looks again when the next input has waited long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        soonest = math.inf
        while True:
            free = [slot for slot in self.slots if slot.ready and len(slot.batches) < DEPTH]
            if not free:
                break
            slot = min(free, key=lambda slot: len(slot.batches))
            key, soonest = self._next(idle=not slot.batches)
            if key is None:
                break
            self._send(slot, key)
        if soonest < math.inf:
            self._timer = self.loop.call_later(max(0.0, soonest - time.monotonic()), self._pump)

    def _next(self, idle: bool) -> tuple[tuple[str, str, int] | None, float]:
        """The lane to serve, or None and the time at which one can be."""
        now, wait = time.monotonic(), self.limits.max_wait_ms / 1000
        best, soonest = None, math.inf
        for key, lane in self.lanes.items():
            head = lane.entries[0]
            if lane.tokens < self.limits.max_batch_tokens:
                if not idle:
                    continue
                if now < head.arrived + wait:
                    soonest = min(soonest, head.arrived + wait)
                    continue
            if best is None or head < self.lanes[best].entries[0]:
                best = key
        return best, soonest

    def _send(self, slot: _Slot, key: tuple[str, str, int]) -> None:
        lane, tokens = self.lanes[key], 0
        chosen: dict[Job, list[int]] = {}
        while lane.entries:
            if chosen and tokens + lane.entries[0].tokens > self.limits.max_batch_tokens:
                break
            entry = lane.pop()
            chosen.setdefault(entry.job, []).append(entry.index)
            tokens += entry.tokens
        if not lane.entries:
            del self.lanes[key]
        number = next(self._numbers)
        slot.batches[number] = list(chosen.items())
        parts = [Part([job.payloads[index] for index in rows]) for job, rows in chosen.items()]
        assert slot.worker is not None
        slot.worker.send(Batch(number, key[0], key[1], parts))

    def _start(self, slot: _Slot) -> None:
        if self.stopping:
            return

        def call(message: Any) -> None:
            if not self.loop.is_closed():
                self.loop.call_soon_threadsafe(self._heard, slot, message)

        slot.worker = self.start_worker(call)

    def _heard(self, slot: _Slot, message: Any) -> None:
        if isinstance(message, Ready):
            slot.ready = True
            self.first.set()
        elif isinstance(message, Done):
            self._done(slot, message)
        elif isinstance(message, Died):
            self._died(slot, message)
        self._pump()

    def _done(self, slot: _Slot, done: Done) -> None:
        tokens = rows = 0
        slot.delay = BACKOFF[0]
        for (job, indices), result in zip(slot.batches.pop(done.number), done.results, strict=True):
            tokens += sum(job.tokens[index] for index in indices)
            rows += len(indices)
            if job.done.done():
                continue
            if isinstance(result, Failure):
                self._fail(
                    job,
                    Refused(422, result.message)
                    if result.expected
                    else Refused(500, f"the model failed ({result.message})", "Backend"),
                )
                continue
            for index, output in zip(indices, result, strict=True):
                job.outputs[index] = output
            job.left -= len(indices)
            if not job.left:
                job.done.set_result(job.outputs)
        if done.seconds > 0:
            self.rate += 0.1 * (tokens / done.seconds - self.rate)
        self.observe(tokens, rows, done.seconds)

    def _died(self, slot: _Slot, died: Died) -> None:
        slot.worker, slot.ready = None, False
        lost, slot.batches = slot.batches, {}
        if self.stopping:
            return
        if not self.first.is_set():
            self.failure = died.reason or "the worker process ended while it loaded the models"
            self.first.set()
            return
        self.deaths += 1
        for parts in lost.values():
            for job, _ in parts:
                job.tries += 1
        for parts in lost.values():
            for job, indices in parts:
                if job.done.done():
                    continue
                if job.tries > TRIES:
                    self._fail(
                        job,
                        Refused(
                            503,
                            "the process that computed this ended, several times; the request was "
                            "given up",
                            "Unhealthy",
                            retry_after=1.0,
                        ),
                    )
                else:
                    self._wait(job, indices)
        self.loop.call_later(slot.delay, self._start, slot)
        slot.delay = min(2 * slot.delay, BACKOFF[1])

    def _fail(self, job: Job, error: Refused) -> None:
        job.done.set_exception(error)
        self.forget(job)
