"""The queue in front of the target: order, limits, and no lost slot however a request ends."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from e5_gateway.errors import QueueFull
from e5_gateway.queue import Queue, Slots, Ticket


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_run_in_order_and_never_more_than_slots() -> None:
    async def main() -> None:
        queue, order, running, max_running = Queue([Slots(3)], 100, 10**6), [], 0, 0

        async def request(number: int, ticket: Ticket[Slots]) -> None:
            nonlocal running, max_running
            async with ticket:
                order.append(number)
                running += 1
                max_running = max(max_running, running)
                await asyncio.sleep(0.001 * (number % 3))
                running -= 1

        await asyncio.gather(*(request(number, queue.enter(10)) for number in range(50)))
        assert order == list(range(50))
        assert max_running == 3
        assert (queue.running, queue.waiting, queue.bytes) == (0, 0, 0)

    run(main())


def test_full_queue_refuses_requests_with_retry_after() -> None:
    async def main() -> None:
        queue = Queue([Slots(1)], 2, 100)
        queue.enter(40)  # has its turn at once
        queue.enter(20)
        with pytest.raises(QueueFull, match="too much is waiting") as refused:
            queue.enter(41)
        assert refused.value.status == 429
        assert refused.value.retry_after is not None
        assert 1 <= refused.value.retry_after <= 60
        queue.enter(40)
        with pytest.raises(QueueFull, match="2 requests"):
            queue.enter(0)
        queue.enter(10**9, accepted=True)  # an accepted request is never refused
        assert queue.waiting == 3

    run(main())


def test_retry_after_follows_the_recent_rate() -> None:
    async def main() -> None:
        queue = Queue([Slots(1)], 1000, 10**6)
        for _ in range(20):
            async with queue.enter(1):
                pass
        first = queue.enter(1)
        for _ in range(80):
            queue.enter(1)
        assert queue.retry_after() == 20  # 80 wait; half of them at 20 in ten seconds
        first.leave()

    run(main())


def test_cancelled_waiting_request_leaves_the_queue() -> None:
    async def main() -> None:
        queue = Queue([Slots(1)], 10, 1000)
        first, second, third = queue.enter(1), queue.enter(100), queue.enter(10)

        async def turn(ticket: Ticket[Slots]) -> None:
            async with ticket:
                pass

        waiting = asyncio.create_task(turn(second))
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (queue.waiting, queue.bytes) == (1, 11)
        first.leave()
        first.leave()  # a second time does nothing
        await turn(third)
        assert (queue.running, queue.waiting, queue.bytes) == (0, 0, 0)

    run(main())


def test_request_cancelled_as_its_turn_comes_gives_the_slot_back() -> None:
    async def main() -> None:
        queue = Queue([Slots(1)], 10, 1000)
        first, second = queue.enter(1), queue.enter(1)

        async def turn(ticket: Ticket[Slots]) -> None:
            async with ticket:
                raise AssertionError("cancelled before")

        waiting = asyncio.create_task(turn(second))
        await settle()
        first.leave()  # the second one's turn
        waiting.cancel()
        (result,) = await asyncio.gather(waiting, return_exceptions=True)
        assert type(result) is asyncio.CancelledError
        assert queue.running == 0
        async with queue.enter(1):
            assert queue.running == 1

    run(main())


def test_fail_waiting_fails_all_waiting_requests() -> None:
    async def main() -> None:
        queue = Queue([Slots(1)], 10, 1000)
        first = queue.enter(1)
        tickets = [queue.enter(5) for _ in range(3)]

        async def turn(ticket: Ticket[Slots]) -> None:
            async with ticket:
                pass

        tasks = [asyncio.create_task(turn(ticket)) for ticket in tickets]
        await settle()
        queue.fail_waiting(RuntimeError("down"))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["down"] * 3
        first.leave()
        assert (queue.running, queue.waiting, queue.bytes) == (0, 0, 0)

    run(main())
