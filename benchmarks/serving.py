"""Load on a server, open loop: ``python -m benchmarks.serving ADDRESS --rates 50 100 200``.

Requests leave at times drawn before the first is sent (a Poisson process), whatever the answers
take: a server that falls behind is seen to. A request's latency counts from the time at which it
was due. At most ``--most`` requests are open at a time; what would be more counts as lost, as do
errors. The same load goes to any server of OpenAI's embeddings, so that servers can be held side by
side. ``--peer`` starts one of sentence-transformers behind FastAPI.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHORT, LONG = (4, 16), (100, 250)  # words of a text, at least and at most
WORDS = (
    *("the", "a", "film", "story", "was", "and", "of", "warm", "dull"),
    *("long", "bright", "cast", "score", "very", "with", "never"),
)


@dataclass
class Measured:
    """What a rate gave: latencies are in milliseconds, ``answered`` is requests in a second."""

    rate: float
    sent: int
    answered: float
    p50: float
    p95: float
    p99: float
    lost: int
    statuses: dict[str, int]


def text_of(draw: random.Random, mixed: bool) -> str:
    """A text; of mixed ones a tenth is long."""
    low, high = LONG if mixed and draw.random() < 0.1 else SHORT
    return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))


async def offered(
    address: str, model: str, rate: float, seconds: float, mixed: bool, most: int, seed: int = 0
) -> Measured:
    """A rate's load for so many seconds."""
    import httpx

    draw = random.Random(seed)
    due, at = [], 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        due.append((at, text_of(draw, mixed)))
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    open_now = 0
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
        started = time.perf_counter()

        async def send(when: float, text: str) -> None:
            nonlocal open_now
            open_now += 1
            try:
                body = {"model": model, "input": text}
                answer = await client.post("/v1/embeddings", json=body)
                statuses[str(answer.status_code)] += 1
                if answer.is_success:
                    latencies.append(1000 * (time.perf_counter() - started - when))
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
            finally:
                open_now -= 1

        sent = set()
        for when, text in due:
            await asyncio.sleep(max(0.0, started + when - time.perf_counter()))
            if open_now >= most:
                statuses["left out"] += 1
                continue
            task = asyncio.create_task(send(when, text))
            sent.add(task)
            task.add_done_callback(sent.discard)
        await asyncio.gather(*sent)
        took = time.perf_counter() - started
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99)).tolist() if latencies else [0.0] * 3
    return Measured(
        rate, len(due), len(latencies) / took, p50, p95, p99, len(due) - len(latencies), statuses
    )


def peer(folder: str, port: int) -> None:
    """sentence-transformers behind FastAPI, as people write it: an endpoint that encodes."""
    import uvicorn
    from fastapi import Body, FastAPI
    from sentence_transformers import SentenceTransformer

    model, app = SentenceTransformer(folder, device="cpu"), FastAPI()

    def embeddings(body: dict[str, Any] = Body()) -> dict[str, Any]:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = model.encode(texts, normalize_embeddings=True).tolist()
        data = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "model": folder}

    # A plain function: FastAPI runs it on a thread.
    app.post("/v1/embeddings")(embeddings)
    uvicorn.run(app, port=port, log_level="warning")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="of the server; with --peer a folder to serve")
    parser.add_argument("--model", default="", help="its name; default: the first there is")
    parser.add_argument("--rates", type=float, nargs="+", default=[50.0], help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each rate")
    parser.add_argument("--mixed", action="store_true", help="a tenth of the texts is long")
    parser.add_argument("--most", type=int, default=512, help="requests that are open at a time")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--peer", type=int, metavar="PORT", help="be the peer, at that port")
    given = parser.parse_args()
    if min(given.rates) <= 0 or given.seconds <= 0 or given.most < 1:
        print("error: rates, seconds and --most must be more than 0", file=sys.stderr)
        return 2
    if given.peer:
        peer(given.address, given.peer)
        return 0
    import httpx

    try:
        model = given.model
        if not model:
            model = httpx.get(f"{given.address}/v1/models").json()["data"][0]["id"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError) as error:
        print(f"error: {given.address}: names no model ({error}); give --model", file=sys.stderr)
        return 2
    found = []
    for rate in given.rates:
        one = asyncio.run(
            offered(given.address, model, rate, given.seconds, given.mixed, given.most)
        )
        found.append(asdict(one))
        print(
            f"{rate:8.1f} requests/s offered  {one.answered:8.1f} answered  p50 {one.p50:8.1f}  "
            f"p95 {one.p95:8.1f}  p99 {one.p99:8.1f} ms  lost {one.lost}",
            flush=True,
        )
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
