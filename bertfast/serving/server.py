"""Runs the server: sockets, connections and signals, by uvicorn."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bertfast.errors import BertfastError

from .app import Access, Server
from .limits import Limits
from .served import Spec, load_served
from .worker import ProcessWorker

HEADERS = 1 << 16  # bytes of a request's line and headers
SPARE = 200  # files that the process has open beside its connections


class Patient(HttpToolsProtocol):
    """A connection whose client is to send its headers in time, and not too many.

    uvicorn waits for them without end: a few thousand idle clients would keep others out.
    """

    seconds = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.deadline: asyncio.TimerHandle | None = None
        self.received = 0
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._await_headers()
            self.received += len(data)
            if self.received > HEADERS + self.flow_limit:
                self.transport.close()
                return
        super().data_received(data)

    # A first piece may hold the headers and a part of the body.
    flow_limit = 1 << 18

    def on_headers_complete(self) -> None:
        self._forget_headers()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.seconds, self.transport.close)

    def _forget_headers(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline, self.received = None, 0


def run(
    specs: Sequence[Spec],
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    threads: int | None = None,
    access: Access | None = None,
    prepare: Callable[[], None] | None = None,
    opened: Callable[[str, Server], None] = lambda *_: None,
) -> None:
    """Serves until SIGTERM or SIGINT, and then finishes what was taken.

    Args:
        specs: the models.
        limits: of requests.
        host, port: to listen at; port 0 is any that is free.
        workers: processes that compute.
        threads: of each worker's; None shares the machine's out among them.
        access: who may ask.
        prepare: called first in each worker, for tasks of the user's own.
        opened: called with the address once the models are loaded.

    Raises:
        BertfastError: a folder cannot be served, or nothing can listen there.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise BertfastError(f"{name} is {value}; it must be at least 1")
    listener = _listen(host, port)
    try:
        models = [load_served(spec).without_weights() for spec in specs]
        if threads is None and workers > 1:
            import torch

            threads = max(1, torch.get_num_threads() // workers)
        start = partial(ProcessWorker, specs=specs, threads=threads, prepare=prepare)
        server = Server(models, limits, start, workers, access)
        _serve(server, listener, host, opened)
    finally:
        listener.close()
    if server.batcher.failure:
        raise BertfastError(server.batcher.failure)


def _serve(
    server: Server, listener: socket.socket, host: str, opened: Callable[[str, Server], None]
) -> None:
    limits = server.limits
    protocol: Any = type("Limited", (Patient,), {"seconds": limits.read_timeout})
    config = uvicorn.Config(
        server.app(),
        http=protocol,
        ws="none",
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=True,
        backlog=4096,
        limit_concurrency=_connections(limits.max_connections),
        timeout_graceful_shutdown=int(limits.timeout) + 1,
    )
    listening = uvicorn.Server(config)
    started = listening.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await started(sockets)
        if listening.started:
            shown = f"[{host}]" if ":" in host else host
            opened(f"http://{shown}:{listener.getsockname()[1]}", server)

    listening.startup = startup  # type: ignore[method-assign]
    # uvicorn raises the signal again when all is done, which is no failure.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with suppress(SystemExit):
            listening.run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        BertfastError: the address is not this machine's, or the port is taken.
    """
    if not 0 <= port < 1 << 16:
        raise BertfastError(f"port is {port}; it must be from 0 to {(1 << 16) - 1}")
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
    except (OSError, UnicodeError) as error:
        raise BertfastError(f"host is {host!r}, which is no address here ({error})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise BertfastError(
            f"{host}:{port}: cannot be listened at ({error.strerror}); choose another --port"
        ) from None
    return listener


def _connections(most: int) -> int:
    """How many connections there may be, with as many files as the system lets the process open."""
    try:
        import resource
    except ImportError:  # Windows
        return most
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft - SPARE))
