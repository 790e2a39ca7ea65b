"""Predictions on disk: what was committed outlives the process; what is old or too much goes, the oldest first."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from e5_gateway.errors import SettingsError
from e5_gateway.store import Row, Store


def row(name: str, **values: object) -> Row:
    given: Row = {
        "id": name,
        "model": "a/b",
        "version": "v",
        "status": "starting",
        "created_at": 1.0,
        "base": "http://x",
    }
    return given | {"input": b"{}", "size": 2} | values


def use(path: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Store(path) as store:
            await work(store)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_what_was_written_is_read_back_and_no_other_user_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store.sqlite3"

    async def write(store: Store) -> None:
        await store.insert(row("one", webhook="http://hook", webhook_due=1))
        await store.update("one", status="succeeded", output=b"[1]", completed_at=2.0)
        await store.insert(row("two", created_at=3.0))
        await store.insert(row("three", created_at=2.0))

    async def read(store: Store) -> None:
        one = await store.get("one")
        assert one is not None
        assert (one["status"], one["output"], one["input"]) == ("succeeded", b"[1]", b"{}")
        assert await store.get("none") is None
        assert [found["id"] for found in await store.unfinished()] == ["three", "two"]
        assert await store.webhooks_due() == ["one"]
        secret = await store.secret("key", lambda: "first")
        assert await store.secret("key", lambda: "second") == secret == "first"

    use(path, write)
    use(path, read)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_writes_of_a_crowd_are_committed_together_and_in_order(tmp_path: Path) -> None:
    async def crowd(store: Store) -> None:
        commits = 0
        database = store._database

        def count(statement: str) -> None:
            nonlocal commits
            commits += statement == "COMMIT"

        database.set_trace_callback(count)
        writes = [store.insert(row(f"id{index}")) for index in range(200)]
        writes += [store.update(f"id{index}", status="failed") for index in range(200)]
        await asyncio.gather(*writes)
        assert await store.unfinished() == []
        assert 1 <= commits <= 5

    use(tmp_path / "store.sqlite3", crowd)


def test_a_failing_write_is_told_to_who_wrote(tmp_path: Path) -> None:
    async def twice(store: Store) -> None:
        await store.insert(row("same"))
        with pytest.raises(sqlite3.IntegrityError):
            await store.insert(row("same"))
        await store.insert(row("other"))

    use(tmp_path / "store.sqlite3", twice)


def test_finished_ones_go_by_age_number_and_bytes_and_unfinished_ones_stay(tmp_path: Path) -> None:
    now = time.time()

    async def fill(store: Store) -> None:
        for index in range(10):
            await store.insert(row(f"id{index}", status="succeeded", completed_at=now - index * 10, size=100))
        await store.insert(row("waiting", created_at=now - 9999, size=10**9))
        names = {f"id{index}" for index in range(10)}

        async def kept() -> set[str]:
            return {name for name in names if await store.get(name)}

        await store.prune(75.0, 1000, 10**9)
        assert await kept() == {f"id{index}" for index in range(8)}
        await store.prune(1e9, 5, 10**9)
        assert await kept() == {f"id{index}" for index in range(5)}
        await store.prune(1e9, 1000, 350)
        assert await kept() == {"id0", "id1", "id2"}
        assert await store.get("waiting")

    use(tmp_path / "store.sqlite3", fill)


def test_pages_go_back_in_time_and_lose_none_of_the_same_moment(tmp_path: Path) -> None:
    async def pages(store: Store) -> None:
        for index in range(10):
            await store.insert(row(f"id{index}", created_at=float(index // 4)))
        seen: list[str] = []
        before = None
        while found := await store.page(before, 3):
            seen += [one["id"] for one in found]
            before = (found[-1]["created_at"], found[-1]["id"])
        assert seen == [f"id{index}" for index in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]

    use(tmp_path / "store.sqlite3", pages)


def test_what_was_committed_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    program = f"""
import asyncio, os, signal, sys
from e5_gateway.store import Store
from tests.gateway.test_gateway_store import row
from pathlib import Path

async def main():
    async with Store(Path({str(path)!r})) as store:
        await store.insert(row("kept"))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9

    async def read(store: Store) -> None:
        assert [found["id"] for found in await store.unfinished()] == ["kept"]

    use(path, read)


def test_a_file_in_use_or_out_of_reach_is_refused_in_words(tmp_path: Path) -> None:
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
    assert broken.read_text().startswith("this is no database")  # the refused file is left as it was
