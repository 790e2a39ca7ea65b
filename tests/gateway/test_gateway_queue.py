"""The queue in front of the target: order, limits, and no lost slot however a request ends."""

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from e5_gateway import queue as queue_module
from e5_gateway.errors import QueueFull
from e5_gateway.queue import HALF_LIFE_SECONDS, Queue, Slots, Ticket


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


def test_the_server_with_the_fewest_bytes_gets_the_next_request() -> None:
    async def main() -> None:
        servers = [Slots(2), Slots(2), Slots(2)]
        queue = Queue(servers, 10, 10**9)
        sizes = (1000, 50, 60, 20, 1, 1)
        tickets = [queue.enter(size) for size in sizes]
        # 20 goes to the second (50 < 60), 1 to the third (60 < 70), and then only the first has a free slot.
        assert [servers.index(ticket.turn.result()) for ticket in tickets] == [0, 1, 2, 1, 2, 0]
        assert [server.bytes for server in servers] == [1001, 70, 61]
        waiting = [queue.enter(1), queue.enter(2)]
        tickets[0].leave()
        assert [ticket.server for ticket in waiting] == [servers[0], None]
        for ticket in (*tickets, *waiting):
            ticket.leave()
        assert [(server.running, server.bytes) for server in servers] == [(0, 0)] * 3
        assert queue.bytes == 0

    run(main())


def test_closed_server_gets_no_requests_and_finishes_what_it_has() -> None:
    async def main() -> None:
        servers = [Slots(1), Slots(1)]
        queue = Queue(servers, 10, 10**9)
        first = queue.enter(1)
        servers[0].open = False
        second, third = queue.enter(1), queue.enter(1)
        assert (second.server, third.server) == (servers[1], None)
        first.leave()
        assert (servers[0].running, third.server) == (0, None)
        servers[0].open = True
        queue.dispatch()
        assert third.server is servers[0]

    run(main())


def test_failed_request_is_the_next_one_and_avoids_its_server() -> None:
    async def main() -> None:
        servers = [Slots(1), Slots(1)]
        queue = Queue(servers, 10, 10**9)
        failed, other = queue.enter(5), queue.enter(7)
        failed.again()
        waiting = queue.enter(1)
        assert (failed.server, waiting.server) == (None, servers[0])  # the free slot is on the server to avoid
        assert (servers[0].running, queue.bytes) == (1, 13)
        last = queue.enter(0)
        waiting.leave()
        assert (failed.server, last.server) == (None, servers[0])
        other.leave()
        assert failed.server is servers[1]
        last.leave()
        servers[0].open = False
        failed.again()  # no other server is open
        assert failed.server is servers[1]
        servers[0].open = True
        blocking = queue.enter(1)
        assert blocking.server is servers[0]
        servers[0].open = False
        early = queue.enter(1)
        blocking.again()
        assert [blocking.server, early.server] == [None, None]
        failed.leave()
        assert (blocking.server, early.server) == (servers[1], None)  # the failed one comes first
        early.leave()
        blocking.leave()
        failed.leave()
        assert (queue.bytes, queue.waiting, queue.running) == (0, 0, 0)

    run(main())


def test_no_slot_is_lost_whatever_happens() -> None:
    async def main() -> None:
        generator = random.Random(1)
        servers = [Slots(2), Slots(3), Slots(1)]
        queue = Queue(servers, 1000, 10**9)
        most = [0, 0, 0]

        async def request(ticket: Ticket[Slots]) -> None:
            for _ in range(generator.randrange(1, 4)):
                async with ticket as server:
                    index = servers.index(server)
                    most[index] = max(most[index], server.running)
                    await asyncio.sleep(generator.random() * 0.002)
                if not any(other.open for other in servers):
                    return
                ticket.again()
            ticket.leave()

        async def trouble() -> None:
            while True:
                server = generator.choice(servers)
                server.open = not server.open
                queue.dispatch()
                if not any(other.open for other in servers):
                    queue.fail_waiting(RuntimeError("down"))
                await asyncio.sleep(0.001)

        troubles = asyncio.create_task(trouble())
        tasks = []
        for _ in range(500):
            tasks.append(asyncio.create_task(request(queue.enter(generator.randrange(100)))))
            await asyncio.sleep(generator.random() * 0.001)
            if generator.random() < 0.1:
                generator.choice(tasks).cancel()
        await asyncio.sleep(0.1)
        troubles.cancel()
        for server in servers:
            server.open = True
        queue.dispatch()
        await asyncio.wait(tasks, timeout=5)
        assert all(task.done() for task in tasks)
        assert (queue.bytes, queue.waiting, queue.running) == (0, 0, 0)
        assert [server.bytes for server in servers] == [0, 0, 0]
        assert most == [2, 3, 1]

    run(main())


def test_slow_server_gets_fewer_requests_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        now = 0.0
        monkeypatch.setattr(queue_module, "time", SimpleNamespace(monotonic=lambda: now))
        slow, fast = Slots(8), Slots(100)
        queue = Queue([slow, fast], 10, 10**9)
        for server, seconds in ((slow, 20.0), (fast, 1.0)):  # seconds of 100 bytes
            ticket = queue.enter(100)
            assert ticket.server is server  # an unmeasured server counts as the fastest
            now += seconds
            async with ticket:
                ticket.succeeded()
        assert (slow.pace, fast.pace) == (0.2, 0.01)
        now += 0.001
        assert [queue.enter(100).server for _ in range(8)] == [fast] * 8
        now += 8 * HALF_LIFE_SECONDS  # it counts as slower by 19 / 256
        assert queue.enter(100).server is slow
        failed = queue.enter(100)
        with contextlib.suppress(RuntimeError):
            async with failed:
                raise RuntimeError("a server that fails at once is not fast")
        assert slow.pace == 0.2

    run(main())
