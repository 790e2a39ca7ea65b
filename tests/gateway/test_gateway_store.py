"""Predictions on disk: committed writes survive the process; pruning deletes the oldest finished predictions."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e5.errors import SettingsError
from e5_gateway.store import Prediction, Store


def prediction(prediction_id: str, **columns: Any) -> Prediction:
    defaults = Prediction(
        id=prediction_id,
        model="a/b",
        version="v",
        status="starting",
        created_at=1.0,
        base="http://x",
        input=b"{}",
        size=2,
    )
    return replace(defaults, **columns)


def use(path: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Store(path) as store:
            await work(store)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_predictions_are_read_back_and_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store.sqlite3"

    async def write(store: Store) -> None:
        await store.insert(prediction("one", webhook="http://hook", webhook_due=True, webhook_events=("a", "b")))
        await store.update("one", status="succeeded", output=b"[1]", completed_at=2.0)
        await store.insert(prediction("two", created_at=3.0))
        await store.insert(prediction("three", created_at=2.0))

    async def read(store: Store) -> None:
        one = await store.get("one")
        assert one is not None
        assert (one.status, one.output, one.input) == ("succeeded", b"[1]", b"{}")
        assert (one.webhook, one.webhook_due, one.webhook_events) == ("http://hook", True, ("a", "b"))
        assert await store.get("none") is None
        assert [unfinished.id for unfinished in await store.unfinished()] == ["three", "two"]
        assert await store.webhooks_due() == ["one"]
        secret = await store.secret("key", lambda: "first")
        assert await store.secret("key", lambda: "second") == secret == "first"

    use(path, write)
    use(path, read)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_concurrent_writes_share_few_commits_in_order(tmp_path: Path) -> None:
    async def burst(store: Store) -> None:
        commits = 0
        database = store._database

        def count(statement: str) -> None:
            nonlocal commits
            commits += statement == "COMMIT"

        database.set_trace_callback(count)
        writes = [store.insert(prediction(f"id{index}")) for index in range(200)]
        writes += [store.update(f"id{index}", status="failed") for index in range(200)]
        await asyncio.gather(*writes)
        assert await store.unfinished() == []
        assert 1 <= commits <= 5

    use(tmp_path / "store.sqlite3", burst)


def test_failed_write_raises_in_its_caller_only(tmp_path: Path) -> None:
    async def twice(store: Store) -> None:
        await store.insert(prediction("same"))
        with pytest.raises(sqlite3.IntegrityError):
            await store.insert(prediction("same"))
        await store.insert(prediction("other"))

    use(tmp_path / "store.sqlite3", twice)


def test_pruning_limits_age_number_and_bytes_of_finished_predictions(tmp_path: Path) -> None:
    now = time.time()

    async def fill(store: Store) -> None:
        for index in range(10):
            await store.insert(prediction(f"id{index}", status="succeeded", completed_at=now - index * 10, size=100))
        await store.insert(prediction("waiting", created_at=now - 9999, size=10**9))
        ids = {f"id{index}" for index in range(10)}

        async def remaining() -> set[str]:
            return {prediction_id for prediction_id in ids if await store.get(prediction_id)}

        await store.prune(75.0, 1000, 10**9)
        assert await remaining() == {f"id{index}" for index in range(8)}
        await store.prune(1e9, 5, 10**9)
        assert await remaining() == {f"id{index}" for index in range(5)}
        await store.prune(1e9, 1000, 350)
        assert await remaining() == {"id0", "id1", "id2"}
        assert await store.get("waiting")

    use(tmp_path / "store.sqlite3", fill)


def test_pages_go_back_in_time_and_keep_equal_times(tmp_path: Path) -> None:
    async def pages(store: Store) -> None:
        for index in range(10):
            await store.insert(prediction(f"id{index}", created_at=float(index // 4)))
        seen: list[str] = []
        before = None
        while page := await store.page(before, 3):
            seen += [summary.id for summary in page]
            before = (page[-1].created_at, page[-1].id)
        assert seen == [f"id{index}" for index in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]

    use(tmp_path / "store.sqlite3", pages)


def test_committed_prediction_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    program = f"""
import asyncio, os, signal, sys
from e5_gateway.store import Store
from tests.gateway.test_gateway_store import prediction
from pathlib import Path

async def main():
    async with Store(Path({str(path)!r})) as store:
        await store.insert(prediction("kept"))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9

    async def read(store: Store) -> None:
        assert [unfinished.id for unfinished in await store.unfinished()] == ["kept"]

    use(path, read)


def test_unusable_database_raises_a_settings_error(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"

    async def second(_: Store) -> None:
        with pytest.raises(SettingsError, match="another gateway uses it"):
            async with Store(path):
                pass

    use(path, second)
    with pytest.raises(SettingsError, match=r"--database .* cannot be used"):
        use(Path("/proc/none/store.sqlite3"), second)
    broken = tmp_path / "broken.sqlite3"
    broken.write_text("this is no database, and longer than a header of one " * 10)
    with pytest.raises(SettingsError, match="not a database"):
        use(broken, second)
    assert broken.read_text().startswith("this is no database")  # unchanged
