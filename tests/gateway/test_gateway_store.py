"""Predictions on disk: committed writes survive the process; pruning deletes the oldest finished predictions."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
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
    assert mode(path) == 0o600 and mode(path.parent) == 0o700


def test_database_of_a_gateway_without_deadlines_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    old = sqlite3.connect(path)
    old.executescript("""
        CREATE TABLE predictions (
            id TEXT PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, status TEXT NOT NULL,
            created_at REAL NOT NULL, started_at REAL, completed_at REAL,
            base TEXT NOT NULL, webhook TEXT, webhook_events TEXT, webhook_due INTEGER NOT NULL DEFAULT 0,
            attempts INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL,
            error TEXT, logs TEXT NOT NULL DEFAULT '', metrics BLOB, input BLOB NOT NULL, output BLOB
        );
        CREATE TABLE secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL);
        INSERT INTO secrets VALUES ('key', 'kept');
        INSERT INTO predictions (id, model, version, status, created_at, base, size, input)
            VALUES ('old', 'a/b', 'v', 'starting', 1.0, 'http://x', 2, '{}');
    """)
    old.close()

    async def write(store: Store) -> None:
        assert [(unfinished.id, unfinished.deadline) for unfinished in await store.unfinished()] == [("old", None)]
        await store.update("old", status="aborted")
        await store.insert(prediction("new", created_at=2.0, deadline=9.0))
        assert await store.secret("key", lambda: "other") == "kept"

    async def read(store: Store) -> None:
        assert [unfinished.id for unfinished in await store.unfinished()] == ["new"]
        assert [(summary.id, summary.deadline) for summary in await store.page(None, 9)] == [
            ("new", 9.0),
            ("old", None),
        ]

    use(path, write)
    use(path, read)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_existing_files_are_made_private(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    files = [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))]

    async def nothing(_: Store) -> None:
        pass

    async def check(_: Store) -> None:
        assert [mode(file) for file in files if file.exists()] == [0o600] * sum(file.exists() for file in files)

    use(path, nothing)
    for file in files:
        file.touch()
        file.chmod(0o644)
    use(path, check)
    assert mode(path) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_s_database_is_refused() -> None:
    async def never(_: Store) -> None:
        raise AssertionError

    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which other users cannot enter
        path = Path(folder) / "store.sqlite3"
        path.touch()
        path.chmod(0o666)
        Path(folder).chmod(0o777)
        os.seteuid(65534)
        try:
            with pytest.raises(SettingsError, match=r"belongs to another user, who could read .*: name a new file"):
                use(path, never)
        finally:
            os.seteuid(0)
        assert mode(path) == 0o666


def test_pruned_texts_are_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"

    def copies() -> int:
        return sum(file.read_bytes().count(b"MARKER") for file in tmp_path.iterdir())

    async def fill_and_prune(store: Store) -> None:
        text = b'["' + b"a MARKER " * 2_000 + b'"]'
        for index in range(20):
            await store.insert(prediction(f"id{index}", input=text, size=len(text)))
            await store.update(f"id{index}", status="succeeded", completed_at=1.0, output=text)
        await store.insert(prediction("kept", input=b'"KEPT"'))
        assert copies()
        await store.prune(60.0, 1000, 10**9)
        assert copies() == 0
        assert (await store.get("kept")) is not None

    use(path, fill_and_prune)
    assert copies() == 0


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
