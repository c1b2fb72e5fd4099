"""A server in a process of its own: its signals, workers that are killed, and clients that are
slow, many or gone.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from servers import serving, write_models

pytestmark = pytest.mark.slow
TEXT = "the film was warm and the cast was long"
KILLS = int(os.environ.get("BERTFAST_KILLS", "3"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))["encoder"]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The server's worker processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == process.pid and "spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def test_workers_are_killed_under_load_and_no_request_is_lost(folder: Path) -> None:
    async def load(address: str, process: subprocess.Popen[str]) -> Counter[int]:
        seen: Counter[int] = Counter()
        over = asyncio.Event()

        async def client(number: int) -> None:
            limits = httpx.Limits(max_connections=1)
            async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:
                while not over.is_set():
                    texts = [f"{TEXT} {number}"] * (1 + number % 5)
                    answer = await http.post("/embed", json={"inputs": texts})
                    seen[answer.status_code] += 1
                    assert answer.status_code != 200 or len(answer.json()) == len(texts)
                    assert answer.status_code in (200, 503), answer.text
                    await asyncio.sleep(0.01)

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        async with httpx.AsyncClient(base_url=address, timeout=120) as http:
            for _ in range(KILLS):
                while not (await http.get("/ready")).is_success:
                    await asyncio.sleep(0.1)
                await asyncio.sleep(0.3)
                for worker in workers_of(process):
                    os.kill(worker, signal.SIGKILL)
            metrics = (await http.get("/metrics")).text
        over.set()
        await asyncio.wait_for(asyncio.gather(*clients), 120)
        deaths = re.search(r"bertfast_worker_deaths (\d+)", metrics)
        assert deaths is not None
        assert int(deaths[1]) >= KILLS - 1
        return seen

    with serving(folder, "--timeout", 100) as (address, process):
        seen = asyncio.run(load(address, process))
    print(f"{KILLS} workers killed: {dict(seen)}")
    assert seen[200] > 10 * KILLS


def test_sigterm_finishes_what_was_taken(folder: Path) -> None:
    with serving(folder, "--max-wait-ms", 5000) as (address, process):
        with ThreadPoolExecutor(4) as pool:
            sent = [
                pool.submit(httpx.post, f"{address}/embed", json={"inputs": TEXT}, timeout=30)
                for _ in range(4)
            ]
            while "bertfast_queue_texts 4" not in httpx.get(f"{address}/metrics").text:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert [one.result().status_code for one in sent] == [200] * 4
        assert process.wait(30) == 0
        assert workers_of(process) == []


def test_a_killed_server_leaves_no_worker(folder: Path) -> None:
    with serving(folder) as (_, process):
        workers = workers_of(process)
        assert len(workers) == 1
        process.kill()
        process.wait(10)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_slow_and_many_clients_keep_nobody_out(folder: Path) -> None:
    many = 1000
    with serving(folder, "--read-timeout", 2) as (address, _):
        port = int(address.rpartition(":")[2])
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(many)]
        started = time.monotonic()
        for place, one in enumerate(idle):
            head = b"POST /embed HTTP/1.1\r\nHost: x\r\n"
            if place % 3 == 1:
                one.sendall(head)
            elif place % 3 == 2:
                one.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert httpx.post(f"{address}/embed", json={"inputs": TEXT}, timeout=20).is_success
        # Each is told to hurry, or left.
        last = b""
        for place in (0, 1, 2):
            idle[place].settimeout(20)
            last = idle[place].recv(1000)
            assert last == b"" or b" 408 " in last.partition(b"\r\n")[0]
        assert b" 408 " in last.partition(b"\r\n")[0]
        assert time.monotonic() - started > 1.5
        for one in idle:
            one.close()
        assert httpx.post(f"{address}/embed", json={"inputs": TEXT}, timeout=20).is_success
        endless = socket.create_connection(("127.0.0.1", port))
        header = b"GET / HTTP/1.1\r\na: " + b"b" * 100_000_000
        with pytest.raises(OSError):  # noqa: PT011  a pipe that broke, or a connection reset
            endless.sendall(header)
        assert httpx.get(f"{address}/health", timeout=20).is_success


def test_nothing_of_a_request_is_logged_unless_asked(folder: Path) -> None:
    for options, lines in (((), 0), (("--access-log",), 2)):
        with serving(folder, *options) as (address, process):
            httpx.post(f"{address}/embed", json={"inputs": "a secret text"}, timeout=20)
            httpx.post(f"{address}/embed", content=b"{a secret", timeout=20)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            written = process.stderr.read()
        assert "secret" not in written
        assert written.count("POST /embed") == lines


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nothing",), "no such folder"),
        (("empty",), "config.json"),
        (("encoder", "encoder"), "another model is named 'encoder' already"),
        (("encoder", "--port", "70000"), "port is 70000"),
        (("encoder", "--host", "no.such.host.invalid"), "host is 'no.such.host.invalid'"),
        (("encoder", "--max-batch", "0"), "max_batch is 0"),
        (("encoder", "--workers", "0"), "workers is 0"),
        (("encoder", "--api-key-file", "none"), "none"),
        (("encoder", "--device", "tpu"), "device is 'tpu'"),
        (("encoder", "--precision", "int3"), "precision is 'int3'"),
        (("encoder", "--port", "TAKEN"), "cannot be listened at"),
    ],
)
def test_what_cannot_be_served_is_one_line(folder: Path, args: tuple[str, ...], said: str) -> None:
    (folder.parent / "empty").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = [port if arg == "TAKEN" else arg for arg in args]
        done = subprocess.run(
            [sys.executable, "-m", "bertfast", "serve", *given],
            cwd=folder.parent,
            capture_output=True,
            text=True,
            timeout=100,
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (2, 1), done.stderr
    assert said in errors[0]
    assert "Traceback" not in done.stderr
