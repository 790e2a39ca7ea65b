"""The queue in front of the target: order, bounds, and no slot lost however a request ends."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from e5_gateway.errors import QueueFull
from e5_gateway.queue import Place, Queue


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_turns_come_in_the_order_of_entering_and_never_more_than_there_are_slots() -> None:
    async def main() -> None:
        queue, order, running, most = Queue(3, 100, 10**6), [], 0, 0

        async def one(number: int, place: Place) -> None:
            nonlocal running, most
            async with place:
                order.append(number)
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.001 * (number % 3))
                running -= 1

        await asyncio.gather(*(one(number, queue.enter(10)) for number in range(50)))
        assert order == list(range(50))
        assert most == 3
        assert (queue.running, queue.waiting, queue.bytes) == (0, 0, 0)

    run(main())


def test_beyond_its_places_or_bytes_it_refuses_with_a_time_to_try_again() -> None:
    async def main() -> None:
        queue = Queue(1, 2, 100)
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
        queue.enter(10**9, accepted=True)  # what was accepted before is never refused
        assert queue.waiting == 3

    run(main())


def test_the_time_to_try_again_follows_the_rate_of_late() -> None:
    async def main() -> None:
        queue = Queue(1, 1000, 10**6)
        for _ in range(20):
            async with queue.enter(1):
                pass
        first = queue.enter(1)
        for _ in range(80):
            queue.enter(1)
        assert queue.retry_after() == 20  # 80 wait; half of them at 20 in ten seconds
        first.leave()

    run(main())


def test_who_gives_up_while_waiting_leaves_no_trace_and_others_go_on() -> None:
    async def main() -> None:
        queue = Queue(1, 10, 1000)
        first, second, third = queue.enter(1), queue.enter(100), queue.enter(10)

        async def turn(place: Place) -> None:
            async with place:
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


def test_who_is_cancelled_just_when_the_turn_comes_gives_it_back() -> None:
    async def main() -> None:
        queue = Queue(1, 10, 1000)
        first, second = queue.enter(1), queue.enter(1)

        async def turn(place: Place) -> None:
            async with place:
                raise AssertionError("cancelled before")

        waiting = asyncio.create_task(turn(second))
        await settle()
        first.leave()  # gives the turn to the second
        waiting.cancel()
        assert [type(one) for one in await asyncio.gather(waiting, return_exceptions=True)] == [asyncio.CancelledError]
        assert queue.running == 0
        async with queue.enter(1):
            assert queue.running == 1

    run(main())


def test_all_who_wait_can_be_told_that_there_is_no_turn() -> None:
    async def main() -> None:
        queue = Queue(1, 10, 1000)
        first = queue.enter(1)
        places = [queue.enter(5) for _ in range(3)]

        async def turn(place: Place) -> None:
            async with place:
                pass

        tasks = [asyncio.create_task(turn(place)) for place in places]
        await settle()
        queue.fail_waiting(RuntimeError("down"))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["down"] * 3
        first.leave()
        assert (queue.running, queue.waiting, queue.bytes) == (0, 0, 0)

    run(main())
