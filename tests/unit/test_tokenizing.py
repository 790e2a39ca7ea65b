"""Concurrent requests are tokenized in slices by two threads: short ones soon, cancelled ones no further."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from e5 import DEFAULT_TASK, Embedder
from e5.errors import InputError
from e5.inputs import LongTexts
from e5.serving.request import EmbedRequest
from e5.serving.tokenizing import THREADS, TokenizerPool
from e5.tokens import CHUNK_CHARACTERS, CHUNK_TEXTS, Tokens
from tests.token_ids import lists

LONG = "word " * (CHUNK_CHARACTERS // 5)  # a slice of its own
SHORT = "short text " * 500


class Gate:
    """The library's `tokenize`. It notes the first word of each slice; while `closed`, a slice waits before it starts.

    Each call of `step` lets one slice through.
    """

    def __init__(self, embedder: Embedder, *, closed: bool = True) -> None:
        self.embedder = embedder
        self.started: list[str] = []
        self.running = self.most_running = 0
        self._steps = threading.Semaphore(0 if closed else 10**6)
        self._lock = threading.Lock()

    def __call__(
        self, queries: Sequence[str], documents: Sequence[str], task: str, long_texts: LongTexts = "truncate"
    ) -> Tokens:
        with self._lock:
            self.started.append([*queries, *documents][0].split()[0])
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        assert self._steps.acquire(timeout=60)
        try:
            return self.embedder.tokenize(queries, documents, task, long_texts)
        finally:
            with self._lock:
                self.running -= 1

    def step(self, slices: int = 1) -> None:
        self._steps.release(slices)

    async def wait_for(self, slices: int) -> None:
        """Until so many slices have started."""
        async with asyncio.timeout(60):
            while len(self.started) < slices:
                await asyncio.sleep(0.002)


def request(*documents: str, queries: Sequence[str] = (), task: str = "") -> EmbedRequest:
    return EmbedRequest(list(queries), list(documents), task)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(120):
            await scenario()

    asyncio.run(main())


@pytest.mark.parametrize(
    "one",
    [
        request(*[LONG] * 3),
        request("a", LONG, "b", "c", LONG + " end", "d", queries=["q", LONG, "r"], task=DEFAULT_TASK),
        request(*[f"document {index}" for index in range(5)], queries=[f"query {i}" for i in range(CHUNK_TEXTS + 5)]),
        request(*[f"document {index}" for index in range(3 * CHUNK_TEXTS)], queries=["query"], task=DEFAULT_TASK),
        request(queries=[f"{index} {SHORT}" for index in range(40)], task="find " * 900),
        request("a"),
    ],
    ids=["long texts", "mixed", "many queries", "many documents", "long task", "one text"],
)
def test_slices_give_the_same_tokens_as_one_call(one: EmbedRequest, library: Embedder) -> None:
    gate = Gate(library, closed=False)

    async def scenario() -> None:
        tokens = await TokenizerPool(gate).tokenize(one)
        direct = library.tokenize(one.queries, one.documents, one.task)
        assert lists(tokens.ids) == lists(direct.ids) and tokens.truncated == direct.truncated
        assert (len(gate.started) > 1) == (one.texts != ["a"])

    run(scenario)


def test_a_short_request_waits_for_the_slices_that_run_and_two_threads_work(library: Embedder) -> None:
    gate = Gate(library)
    pool = TokenizerPool(gate)

    async def scenario() -> None:
        long = [asyncio.create_task(pool.tokenize(request(*[f"long{n} {LONG}"] * 10))) for n in range(6)]
        await gate.wait_for(THREADS)
        short = asyncio.create_task(pool.tokenize(request(SHORT)))
        await asyncio.sleep(0)  # it enters the queue
        gate.step(THREADS + 2)  # those that run, at most one of the oldest request, and the short one
        assert len(await short) == 1
        assert "short" in gate.started[THREADS : THREADS + 2]
        assert not any(task.done() for task in long)
        gate.step(1000)
        assert [len(tokens) for tokens in await asyncio.gather(*long)] == [10] * 6
        assert gate.most_running == THREADS
        assert len(gate.started) == 61

    run(scenario)


def test_short_requests_do_not_starve_the_oldest(library: Embedder) -> None:
    gate = Gate(library)
    pool = TokenizerPool(gate)

    async def scenario() -> None:
        filling = [asyncio.create_task(pool.tokenize(request(f"filling {LONG}"))) for _ in range(THREADS)]
        await gate.wait_for(THREADS)
        long = asyncio.create_task(pool.tokenize(request(*[f"long {LONG}"] * 4)))
        await asyncio.sleep(0)
        short = [asyncio.create_task(pool.tokenize(request(SHORT))) for _ in range(20)]
        await asyncio.sleep(0)
        gate.step(1000)
        await asyncio.gather(*filling, long, *short)
        assert gate.started[THREADS:].count("long") == 4
        assert gate.started[THREADS : THREADS + 9].count("long") >= 3, "every other slice is one of the oldest request"

    run(scenario)


def test_a_cancelled_request_stops_after_the_slices_that_run(library: Embedder) -> None:
    gate = Gate(library)
    pool = TokenizerPool(gate)

    async def scenario() -> None:
        long = [asyncio.create_task(pool.tokenize(request(*[f"long {LONG}"] * 10))) for _ in range(6)]
        await gate.wait_for(THREADS)
        for task in long:
            task.cancel()
        await asyncio.gather(*long, return_exceptions=True)
        gate.step(1000)
        assert len(await pool.tokenize(request(SHORT))) == 1
        assert gate.started == ["long"] * THREADS + ["short"]
        assert not pool._waiting, "nothing keeps the texts of a cancelled request"

    run(scenario)


def test_an_error_fails_its_request_only(library: Embedder) -> None:
    gate = Gate(library, closed=False)
    pool = TokenizerPool(gate)

    async def scenario() -> None:
        bad = pool.tokenize(request(queries=[f"bad {LONG}"] * 8, task="find " * 3000))
        good = pool.tokenize(request(*[LONG] * 2))
        error, tokens = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(error, InputError) and "`task` takes" in str(error)
        assert isinstance(tokens, Tokens) and len(tokens) == 2
        assert not pool._waiting

    run(scenario)
