"""How inputs of many requests become batches, and what becomes of them when a worker ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bertfast.serving.batcher import TRIES, Batcher, Job
from bertfast.serving.limits import Limits, Refused
from bertfast.serving.worker import Batch, Died, Done, Failure, Ready


class Hand:
    """A worker whose answers the test gives."""

    def __init__(self, call: Callable[[Any], None]) -> None:
        self.call, self.batches = call, []
        call(Ready())

    def send(self, batch: Batch) -> None:
        self.batches.append(batch)

    def stop(self) -> None:
        pass

    @property
    def sizes(self) -> list[int]:
        return [sum(len(part.payloads) for part in batch.parts) for batch in self.batches]

    def answer(self, place: int = 0, seconds: float = 0.01) -> None:
        batch = self.batches.pop(place)
        results = [[payload * 10 for payload in part.payloads] for part in batch.parts]
        self.call(Done(batch.number, results, seconds))


def run(
    body: Callable[[Batcher, list[Hand]], Awaitable[None]], workers: int = 1, **limits: Any
) -> None:
    """Runs a test on a batcher, and the workers that it has started so far."""

    async def main() -> None:
        hands: list[Hand] = []

        def start(call: Callable[[Any], None]) -> Hand:
            hands.append(Hand(call))
            return hands[-1]

        options = {"max_batch_tokens": 100, "max_wait_ms": 5.0, **limits}
        batcher = Batcher(Limits(**options), start, workers)
        batcher.start()
        await settled()
        await asyncio.wait_for(body(batcher, hands), 20)
        await batcher.stop()

    asyncio.run(main())


async def settled(seconds: float = 0.0) -> None:
    """Lets what is due happen."""
    await asyncio.sleep(seconds)
    for _ in range(5):
        await asyncio.sleep(0)


def put(batcher: Batcher, *payloads: int, tokens: int = 10, model: str = "m") -> Job:
    return batcher.submit(model, "op", list(payloads), [tokens] * len(payloads))


def test_requests_share_a_batch_and_get_their_own_outputs() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        jobs = [put(batcher, 1, 2), put(batcher, 3)]
        assert hands[0].batches == []
        await settled(0.02)
        assert hands[0].sizes == [3]
        hands[0].answer()
        assert [await job.done for job in jobs] == [[10, 20], [30]]

    run(body)


def test_a_full_batch_does_not_wait_and_a_batch_has_no_more_than_its_tokens() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        job = put(batcher, *range(25))
        assert hands[0].sizes == [10, 10]  # one computed, one that waits at the worker
        hands[0].answer()
        await settled()
        assert hands[0].sizes == [10]
        hands[0].answer()
        await settled(0.02)
        assert hands[0].sizes == [5]
        hands[0].answer()
        assert await job.done == [10 * number for number in range(25)]

    run(body, max_wait_ms=0.0)


def test_an_input_longer_than_a_batch_is_one_by_itself() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        put(batcher, 1, 2, tokens=1000)
        await settled(0.02)
        assert hands[0].sizes == [1, 1]

    run(body)


def test_one_text_does_not_wait_for_the_thousand_of_another_request() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        put(batcher, *range(1000))
        late, answered = put(batcher, 7), 0
        while not late.done.done():
            hands[0].answer()
            await settled()
            answered += 1
        assert answered < 50  # of the hundred batches before it

    run(body)


def test_short_inputs_share_no_batch_with_long_ones_and_go_first() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        put(batcher, 1, 2, 3, 4, tokens=50)
        put(batcher, 8, 9, tokens=5)
        await settled(0.02)
        assert [part.payloads for part in hands[0].batches[0].parts] == [[1, 2]]
        hands[0].answer()
        hands[0].answer()
        await settled(0.02)
        assert [part.payloads for part in hands[0].batches[0].parts] == [[8, 9]]

    run(body)


def test_models_share_no_batch_and_none_waits_for_ever() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        jobs = [put(batcher, *range(40), model="a"), put(batcher, 1, model="b")]
        seen = 0
        while not all(job.done.done() for job in jobs):
            await settled(0.006)
            assert all(len({batch.model}) == 1 for batch in hands[0].batches)
            if hands[0].batches:
                seen += 1
                hands[0].answer()
        assert seen == 5

    run(body)


def test_a_client_that_leaves_takes_its_inputs_along() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        gone, stays = put(batcher, *range(50)), put(batcher, 3)
        assert hands[0].sizes == [10, 10]
        batcher.forget(gone)
        assert batcher.waiting == 10
        hands[0].answer()
        hands[0].answer()
        await settled(0.02)
        assert hands[0].sizes == [1]
        hands[0].answer()
        assert await stays.done == [30]
        assert not batcher.lanes

    run(body)


def test_a_failure_is_of_one_request_alone() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        bad, worse, good = put(batcher, 1), put(batcher, 2), put(batcher, 3)
        await settled(0.02)
        batch = hands[0].batches.pop()
        results = [Failure("it is wrong", True), Failure("KeyError", False), [30]]
        hands[0].call(Done(batch.number, results, 0.1))
        assert await good.done == [30]
        for job, status in ((bad, 422), (worse, 500)):
            with pytest.raises(Refused) as refused:
                await job.done
            assert refused.value.status == status

    run(body)


def test_a_worker_that_dies_is_followed_by_another_that_gets_its_batches() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        jobs = [put(batcher, 1), put(batcher, 2)]
        await settled(0.02)
        hands[0].call(Died())
        await settled(0.15)
        assert len(hands) == 2
        # Each by itself now: one of them may be what the worker died of.
        assert hands[1].sizes == [1]
        while not all(job.done.done() for job in jobs):
            hands[1].answer()
            await settled(0.006)
        assert [job.done.result() for job in jobs] == [[10], [20]]
        assert batcher.deaths == 1

    run(body)


def test_what_loses_one_worker_after_another_is_refused_and_its_neighbour_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bertfast.serving.batcher.BACKOFF", (0.0, 0.0))

    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        for slot in batcher.slots:
            slot.delay = 0.0
        poison, good = put(batcher, 666), put(batcher, 2)
        while not (poison.done.done() and good.done.done()):
            await settled(0.006)
            hand = hands[-1]
            if hand.batches:
                held = [part.payloads for part in hand.batches[0].parts]
                hand.call(Died()) if [666] in held else hand.answer()
        assert good.done.result() == [20]
        assert isinstance(poison.done.exception(), Refused)
        assert poison.done.exception().status == 503
        assert batcher.deaths == TRIES + 1

    run(body)


def test_a_server_whose_first_worker_cannot_load_says_why() -> None:
    async def main() -> None:
        class Broken(Hand):
            def __init__(self, call: Callable[[Any], None]) -> None:
                call(Died("the folder is gone"))

        batcher = Batcher(Limits(), Broken)
        batcher.start()
        await asyncio.wait_for(batcher.first.wait(), 5)
        assert batcher.failure == "the folder is gone"

    asyncio.run(main())


def test_two_workers_share_what_waits() -> None:
    async def body(batcher: Batcher, hands: list[Hand]) -> None:
        put(batcher, *range(20))
        assert [hand.sizes for hand in hands] == [[10], [10]]

    run(body, workers=2)
