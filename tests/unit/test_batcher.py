"""Shared batches: the real model behind a gate, so that a test decides which requests wait during which batch."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from e5 import DEFAULT_TASK, Embedder
from e5.errors import ModelError, OverloadError
from e5.serving.batcher import RECOVERY, Batcher, Embedded
from e5.tokens import TokenIds
from tests.reference import relative_l2

Scenario = Callable[[Batcher], Coroutine[Any, Any, None]]


class Gate(Embedder):
    """The embedded model. A forward pass waits until the gate is open; then `fault` may raise or change its vectors."""

    def __init__(self, model: Embedder) -> None:
        self.__dict__ |= vars(model)
        self.open = threading.Event()
        self.batches: list[list[str]] = []
        self.fault: Callable[[list[str], torch.Tensor], None] = lambda texts, vectors: None

    def forward(self, ids: Sequence[TokenIds]) -> torch.Tensor:
        texts = [self.tokenizer._file.decode(text.tolist()) for text in ids]
        self.batches.append(texts)
        assert self.open.wait(20)
        vectors = super().forward(ids).clone()
        self.fault(texts, vectors)
        return vectors


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder.load(dtype="float32", device="cpu", max_batch_tokens=64)


@pytest.fixture
def gate(model: Embedder) -> Iterator[Gate]:
    gate = Gate(model)
    yield gate
    gate.open.set()


def run(gate: Gate, scenario: Scenario, max_queued_tokens: int = 1_000_000) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as thread:
            async with asyncio.timeout(30):
                await scenario(Batcher(gate, thread, max_queued_tokens))
            gate.open.set()

    asyncio.run(main())


def ask(batcher: Batcher, *documents: str) -> asyncio.Task[Embedded]:
    return asyncio.create_task(batcher.embed(batcher.embedder.tokenize([], documents, "")))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def occupied(batcher: Batcher, gate: Gate) -> asyncio.Task[Embedded]:
    """A request that holds the device until the gate opens."""
    gate.open.clear()
    first = ask(batcher, "first")
    before = len(gate.batches)
    await until(lambda: len(gate.batches) > before)
    return first


def assert_vectors(got: Embedded, model: Embedder, *documents: str) -> None:
    want = np.concatenate([model.embed_documents([document]) for document in documents])  # one by one
    assert relative_l2(got.vectors, want) < 1e-5


# Shared batches


def test_requests_that_wait_during_a_batch_share_the_next_one(gate: Gate, model: Embedder) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await occupied(batcher, gate)
        rest = [ask(batcher, "one two three", "four"), ask(batcher, "five"), ask(batcher, "four")]
        await asyncio.sleep(0.05)
        assert gate.batches == [["first"]], "the other requests wait for the next batch"
        gate.open.set()
        alone, *together = await asyncio.gather(first, *rest)
        assert gate.batches[1][0] == "one two three", "longest first"
        assert [sorted(batch) for batch in gate.batches[1:]] == [["five", "four", "one two three"]], "equal texts once"
        assert [alone.batch_texts, *(result.batch_texts for result in together)] == [1, 3, 3, 3]
        assert_vectors(alone, model, "first")
        for got, documents in zip(together, (("one two three", "four"), ("five",), ("four",)), strict=True):
            assert_vectors(got, model, *documents)
        assert all(result.queued_seconds >= 0.05 for result in together)
        assert all(result.model_seconds > 0 for result in (alone, *together))

    run(gate, scenario)


def test_idle_device_starts_at_once(gate: Gate) -> None:
    async def scenario(batcher: Batcher) -> None:
        gate.open.set()
        for _ in range(3):  # one after another: each gets a batch of its own
            got = await ask(batcher, "alone")
            assert got.queued_seconds < 0.5
        assert gate.batches == [["alone"]] * 3

    run(gate, scenario)


def test_queries_and_documents_keep_their_rows(gate: Gate, model: Embedder) -> None:
    async def scenario(batcher: Batcher) -> None:
        gate.open.set()
        documents = ["b", "a much longer document " * 9, "b"]
        tokens = model.tokenize(["a long query of many words", "b"], documents, "find")
        got = await batcher.embed(tokens)
        want = [model.embed_queries([text], task="find") for text in ("a long query of many words", "b")]
        want += [model.embed_documents([text]) for text in documents]
        assert relative_l2(got.vectors, np.concatenate(want)) < 1e-5
        assert tokens.truncated == []

    run(gate, scenario)


def test_long_request_does_not_block_a_short_one(gate: Gate) -> None:
    async def scenario(batcher: Batcher) -> None:
        await occupied(batcher, gate)
        long = ask(batcher, *(f"text {index} of the long request" for index in range(300)))
        await asyncio.sleep(0.05)
        short = ask(batcher, "short")
        await asyncio.sleep(0.05)
        gate.open.set()
        await short
        assert not long.done()
        assert "short" in gate.batches[1], "it is in the next batch"
        await long

    run(gate, scenario)


# Isolation


def test_cancelled_request_leaves_the_queue_at_once(gate: Gate, model: Embedder) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await occupied(batcher, gate)
        cancelled = ask(batcher, "cancelled", "shared")
        stays = ask(batcher, "stays", "shared")
        await asyncio.sleep(0.05)
        cancelled.cancel()
        first.cancel()  # it is being computed
        for task in (cancelled, first):
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.open.set()
        assert_vectors(await stays, model, "stays", "shared")
        assert sorted(gate.batches[1]) == ["shared", "stays"]
        assert_vectors(await ask(batcher, "cancelled"), model, "cancelled")

    run(gate, scenario)


def test_nan_fails_only_the_requests_with_that_text(gate: Gate, model: Embedder) -> None:
    def spoil(texts: list[str], vectors: torch.Tensor) -> None:
        vectors[[text == "bad" for text in texts], 3] = float("nan")

    async def scenario(batcher: Batcher) -> None:
        gate.fault = spoil
        await occupied(batcher, gate)
        failing = ask(batcher, "good", "bad"), ask(batcher, "bad")
        fine = ask(batcher, "good")
        await asyncio.sleep(0.05)
        gate.open.set()
        with pytest.raises(FloatingPointError, match="NaN or infinity for text 2 of 2"):
            await failing[0]
        with pytest.raises(FloatingPointError, match="NaN or infinity for text 1 of 1"):
            await failing[1]
        assert_vectors(await fine, model, "good")
        assert not batcher.suspect and not batcher.dead

    run(gate, scenario)


def test_failing_text_fails_only_its_own_request(gate: Gate, model: Embedder) -> None:
    def fail(texts: list[str], vectors: torch.Tensor) -> None:
        if "bad" in texts:
            raise RuntimeError("a kernel that cannot")

    async def scenario(batcher: Batcher) -> None:
        gate.fault = fail
        await occupied(batcher, gate)
        fine = [ask(batcher, f"good {index}") for index in range(5)]
        bad = ask(batcher, "good 0", "bad")
        await asyncio.sleep(0.05)
        gate.open.set()
        with pytest.raises(ModelError, match=r"text 2 of 2 \(3 tokens\): RuntimeError: a kernel that cannot"):
            await bad
        for index, task in enumerate(fine):
            assert_vectors(await task, model, f"good {index}")
        assert batcher.budget == gate.max_batch_tokens, "only running out of memory changes the budget"

    run(gate, scenario)


def test_out_of_memory_halves_the_batch_and_the_budget_recovers(gate: Gate, model: Embedder) -> None:
    texts = [f"text {index}" for index in range(12)]  # 5 tokens each
    room = 3

    def run_out(texts: list[str], vectors: torch.Tensor) -> None:
        if len(texts) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    async def scenario(batcher: Batcher) -> None:
        gate.fault = run_out
        gate.open.set()
        got = await ask(batcher, *texts)
        assert_vectors(got, model, *texts)
        assert batcher.budget == 15, "half of the 30 tokens that failed last"
        assert [len(batch) for batch in gate.batches[:3]] == [12, 6, 3]
        assert max(map(len, gate.batches[-2:])) <= room, "later batches are smaller from the start"
        assert not batcher.suspect
        gate.fault = lambda texts, vectors: None
        for index in range(4 * RECOVERY):
            await ask(batcher, f"number {index}")
        assert batcher.budget == gate.max_batch_tokens

    run(gate, scenario)


def test_text_that_does_not_fit_even_alone_fails_with_the_reason(gate: Gate, model: Embedder) -> None:
    def run_out(texts: list[str], vectors: torch.Tensor) -> None:
        if any(len(text) > 100 for text in texts):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    async def scenario(batcher: Batcher) -> None:
        gate.fault = run_out
        await occupied(batcher, gate)
        large = ask(batcher, "small", "large " * 50)
        small = ask(batcher, "small")
        await asyncio.sleep(0.05)
        gate.open.set()
        with pytest.raises(ModelError, match=r"text 2 of 2 \(\d+ tokens\) does not fit .* even alone: .*2 GiB"):
            await large
        assert_vectors(await small, model, "small")
        assert not batcher.suspect

    run(gate, scenario)


def test_batcher_survives_real_memory_exhaustion_on_a_cpu() -> None:
    """In a process with a limited address space, the attention of one 4,096-token text fits; a full batch does not."""
    script = """
import asyncio, resource, numpy as np
from concurrent.futures import ThreadPoolExecutor
from e5 import Embedder
from e5.serving.batcher import Batcher

model = Embedder.load(dtype="float32", device="cpu", max_batch_tokens=400_000)
texts = [f"{index} " + "word " * 500 for index in range(120)]
want = model.embed_documents(texts[:2])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

async def main():
    with ThreadPoolExecutor(1) as thread:
        batcher = Batcher(model, thread, 10_000_000)
        await batcher.embed(model.tokenize([], ["warm up the thread"], ""))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, -1))
        got = await batcher.embed(model.tokenize([], texts, ""))
        assert np.abs(got.vectors[:2] - want).max() < 1e-3
        assert 0 < batcher.budget < 100_000, batcher.budget
        print("budget", batcher.budget, "batch", got.batch_texts)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("budget")


def test_dead_thread_fails_waiting_and_later_requests_at_once(gate: Gate) -> None:
    def die(texts: list[str], vectors: torch.Tensor) -> None:
        raise SystemExit("the driver has gone")

    async def scenario(batcher: Batcher) -> None:
        first = await occupied(batcher, gate)
        waiting = [ask(batcher, f"waiting {index}") for index in range(5)]
        await asyncio.sleep(0.05)
        gate.fault = die
        gate.open.set()
        died = time.perf_counter()
        for task in (first, *waiting):
            with pytest.raises(ModelError, match=r"has ended \(SystemExit: the driver has gone\): restart the server"):
                await task
        with pytest.raises(ModelError, match="has ended"):
            await ask(batcher, "too late")
        assert time.perf_counter() - died < 1
        assert "the driver has gone" in batcher.dead
        assert len(gate.batches) == 1

    run(gate, scenario)


# The queue's limit


def test_full_queue_rejects_requests_until_it_has_room(gate: Gate, model: Embedder) -> None:
    async def scenario(batcher: Batcher) -> None:
        first = await occupied(batcher, gate)  # 3 tokens
        second = ask(batcher, "one two")  # 4 tokens: 7 of 8
        await asyncio.sleep(0)
        with pytest.raises(
            OverloadError, match=r"7 tokens are waiting, and the 3 .* exceed the 8 of E5_MAX_QUEUED_TOKENS"
        ):
            await ask(batcher, "three")
        second.cancel()
        await asyncio.sleep(0)
        third = ask(batcher, "three")
        gate.open.set()
        assert_vectors(await third, model, "three")
        await first
        await ask(batcher, "an empty queue accepts a request larger than its limit")

    run(gate, scenario, max_queued_tokens=8)


def test_finished_and_cancelled_requests_leave_nothing_behind(gate: Gate) -> None:
    async def scenario(batcher: Batcher) -> None:
        gate.open.set()
        tasks = [ask(batcher, "same", f"text {index % 7}") for index in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ask(batcher, "last")
        await until(lambda: not batcher._working)
        assert not batcher._schedule._texts and not batcher._schedule.requests

    run(gate, scenario)


def test_default_task_reaches_the_queries(gate: Gate, model: Embedder) -> None:
    async def scenario(batcher: Batcher) -> None:
        gate.open.set()
        got = await batcher.embed(model.tokenize(["how tall?"], [], DEFAULT_TASK))
        assert relative_l2(got.vectors, model.embed_queries(["how tall?"])) < 1e-5

    run(gate, scenario)


def test_no_texts_give_no_vectors(gate: Gate) -> None:
    async def scenario(batcher: Batcher) -> None:
        got = await ask(batcher)
        assert got.vectors.shape == (0, gate.dimensions) and got.batch_texts == 0

    run(gate, scenario)
