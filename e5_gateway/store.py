"""Predictions of the Replicate API on disk, in SQLite: what was accepted outlives the gateway.

One thread writes. Writes that come while it is busy are committed together, so that a crowd costs few commits, and the
event loop never waits for the disk. Committed means: outlives the end of this process, however it ends (WAL,
synchronous=NORMAL); after a power cut the last moments may be missing.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from e5_gateway.errors import SettingsError

SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, status TEXT NOT NULL,
    created_at REAL NOT NULL, started_at REAL, completed_at REAL,
    base TEXT NOT NULL, webhook TEXT, webhook_events TEXT, webhook_due INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL,
    error TEXT, logs TEXT NOT NULL DEFAULT '', metrics BLOB, input BLOB NOT NULL, output BLOB
);
CREATE INDEX IF NOT EXISTS by_completion ON predictions (status, completed_at, id, size);
CREATE INDEX IF NOT EXISTS by_creation ON predictions (created_at);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
FINAL = ("succeeded", "failed", "canceled")
Row = dict[str, Any]
Statement = tuple[str, tuple[Any, ...]]


class Store:
    """`async with Store(path) as store`. Raises SettingsError when the file cannot be used, or is in use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._pending: list[tuple[Statement, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._run(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._flushing is not None:
            await self._flushing
        await self._run(self._database.close)
        self._thread.shutdown()

    async def write(self, sql: str, *values: Any) -> None:
        """Returns when committed. Statements are committed in the order in which they were passed."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(((sql, values), done))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        await asyncio.shield(done)

    async def insert(self, row: Row) -> None:
        columns = ", ".join(row)
        await self.write(f"INSERT INTO predictions ({columns}) VALUES ({', '.join('?' * len(row))})", *row.values())

    async def update(self, name: str, **values: Any) -> None:
        columns = ", ".join(f"{column} = ?" for column in values)
        await self.write(f"UPDATE predictions SET {columns} WHERE id = ?", *values.values(), name)

    async def get(self, name: str) -> Row | None:
        found = await self._select("SELECT * FROM predictions WHERE id = ?", name)
        return found[0] if found else None

    async def unfinished(self) -> list[Row]:
        """What was accepted and has not ended, oldest first."""
        return await self._select(f"SELECT * FROM predictions WHERE status NOT IN {FINAL} ORDER BY created_at")

    async def webhook(self, name: str) -> str | None:
        """Where a prediction's events are told."""
        found = await self._select("SELECT webhook FROM predictions WHERE id = ?", name)
        return found[0]["webhook"] if found else None

    async def webhooks_due(self) -> list[str]:
        """Ids of predictions that have ended and whose last webhook has not been delivered or given up."""
        rows = await self._select(f"SELECT id FROM predictions WHERE webhook_due AND status IN {FINAL}")
        return [row["id"] for row in rows]

    async def page(self, before: tuple[float, str] | None, count: int) -> list[Row]:
        """The newest, or those older than a (created_at, id); without inputs, outputs and logs."""
        when, name = before or (float("inf"), "")
        return await self._select(
            "SELECT id, model, version, status, created_at, started_at, completed_at, error, metrics, base"
            " FROM predictions WHERE (created_at, id) < (?, ?) ORDER BY created_at DESC, id DESC LIMIT ?",
            when, name, count,
        )  # fmt: skip

    async def secret(self, name: str, make: Callable[[], str]) -> str:
        """A secret of this gateway, made when first asked for."""
        await self.write("INSERT OR IGNORE INTO secrets VALUES (?, ?)", name, make())
        return str((await self._select("SELECT value FROM secrets WHERE name = ?", name))[0]["value"])

    async def prune(self, seconds: float, most: int, most_bytes: int) -> None:
        """Forget finished predictions: those older than `seconds`, then the oldest beyond `most` or `most_bytes`."""
        ended = f"status IN {FINAL}"
        await self.write(f"DELETE FROM predictions WHERE {ended} AND completed_at < ?", time.time() - seconds)
        await self.write(
            f"DELETE FROM predictions WHERE {ended} AND id IN (SELECT id FROM (SELECT id,"
            f" row_number() OVER newest AS position, sum(size) OVER newest AS bytes FROM predictions WHERE {ended}"
            " WINDOW newest AS (ORDER BY completed_at DESC, id)) WHERE position > ? OR bytes > ?)",
            most, most_bytes,
        )  # fmt: skip

    async def _flush(self) -> None:
        while self._pending:
            taken, self._pending = self._pending, []
            error: Exception | None = None
            try:
                await self._run(self._commit, [statement for statement, _ in taken])
            except Exception as caught:
                error = caught
            for _, done in taken:
                if not done.done():
                    done.set_exception(error) if error else done.set_result(None)

    def _commit(self, statements: Iterable[Statement]) -> None:
        with self._database:  # one transaction
            for sql, values in statements:
                self._database.execute(sql, values)

    async def _select(self, sql: str, *values: Any) -> list[Row]:
        rows: list[Row] = await self._run(lambda: [dict(row) for row in self._database.execute(sql, values)])
        return rows

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # texts of users: for this user's eyes
            self._database = sqlite3.connect(self._path, timeout=1, check_same_thread=False)
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")  # two gateways would compute everything twice
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(SCHEMA)
            self._database.execute("BEGIN IMMEDIATE").close()
            self._database.commit()
        except (OSError, sqlite3.Error) as error:
            reason = "another gateway uses it" if "locked" in str(error) else str(error)
            raise SettingsError(f"--database {self._path} cannot be used: {reason}") from None
