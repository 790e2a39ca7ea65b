"""Predictions and files of the Replicate API on disk, in SQLite: accepted predictions survive the gateway.

One thread writes. Writes that arrive while it is busy share the next commit, so the event loop never waits for the disk
and a burst needs few commits. A committed write survives the end of the process, however it ends (WAL,
synchronous=NORMAL); a power cut may lose the last commits.
"""

import asyncio
import base64
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from e5.errors import SettingsError

SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, status TEXT NOT NULL,
    created_at REAL NOT NULL, started_at REAL, completed_at REAL, deadline REAL,
    base TEXT NOT NULL, webhook TEXT, webhook_events TEXT, webhook_due INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL,
    error TEXT, logs TEXT NOT NULL DEFAULT '', metrics BLOB, input BLOB NOT NULL, output BLOB
);
CREATE INDEX IF NOT EXISTS by_completion ON predictions (status, completed_at, id, size);
CREATE INDEX IF NOT EXISTS by_creation ON predictions (created_at);
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, content_type TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
    metadata BLOB NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL, content BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
FINAL = ("succeeded", "failed", "canceled", "aborted")
CROCKFORD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghjkmnpqrstvwxyz")
FILE_COLUMNS = "id, name, content_type, size, sha256, metadata, created_at, expires_at"
UNUSED = (
    f"NOT EXISTS (SELECT 1 FROM predictions WHERE status NOT IN {FINAL}"
    " AND instr(CAST(predictions.input AS TEXT), files.id))"
)
"""No prediction waits for the file."""
Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class PredictionSummary:
    """The columns of a prediction that a list shows. Times are Unix times; `metrics` is JSON. `model`: owner/name."""

    id: str
    model: str
    version: str
    status: str
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    deadline: float | None = None
    error: str | None = None
    metrics: bytes | None = None

    @property
    def final(self) -> bool:
        return self.status in FINAL


@dataclass(frozen=True, kw_only=True)
class Prediction(PredictionSummary):
    """All columns of a prediction. `input` and `output` are JSON.

    `base`: the gateway's address as the client that made the prediction knows it, for its webhook.
    `attempts`: times that the target broke while it ran this prediction. `size`: bytes of input and output.
    `webhook_due`: the webhook of its end is wanted, and has been neither delivered nor given up.
    """

    base: str
    input: bytes
    size: int
    output: bytes | None = None
    logs: str = ""
    attempts: int = 0
    webhook: str | None = None
    webhook_events: tuple[str, ...] = ()
    webhook_due: bool = False


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """The columns of a file except its content. Times are Unix times; `metadata` is JSON; `size` is in bytes."""

    id: str
    name: str
    content_type: str
    size: int
    sha256: str
    metadata: bytes
    created_at: float
    expires_at: float


def new_public_id() -> str:
    """128 random bits in Crockford's base 32: 26 characters, as in Replicate's ids."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").translate(CROCKFORD)


class Store:
    """`async with Store(path) as store`. Raises SettingsError if the file is unusable or in use."""

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

    async def insert(self, prediction: Prediction) -> None:
        row = {column.name: getattr(prediction, column.name) for column in fields(prediction)}
        row["webhook_events"] = ",".join(prediction.webhook_events)
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        await self._write(f"INSERT INTO predictions ({columns}) VALUES ({marks})", *row.values())

    async def update(self, prediction_id: str, **columns: Any) -> None:
        assignments = ", ".join(f"{column} = ?" for column in columns)
        await self._write(f"UPDATE predictions SET {assignments} WHERE id = ?", *columns.values(), prediction_id)

    async def get(self, prediction_id: str) -> Prediction | None:
        rows = await self._select("SELECT * FROM predictions WHERE id = ?", prediction_id)
        return _prediction(rows[0]) if rows else None

    async def unfinished(self) -> list[Prediction]:
        """The accepted predictions that have not ended, oldest first."""
        rows = await self._select(f"SELECT * FROM predictions WHERE status NOT IN {FINAL} ORDER BY created_at")
        return [_prediction(row) for row in rows]

    async def webhook(self, prediction_id: str) -> str | None:
        """The URL of a prediction's webhook."""
        rows = await self._select("SELECT webhook FROM predictions WHERE id = ?", prediction_id)
        return rows[0]["webhook"] if rows else None

    async def webhooks_due(self) -> list[str]:
        """Ids of the predictions that have ended and whose last webhook is still due."""
        rows = await self._select(f"SELECT id FROM predictions WHERE webhook_due AND status IN {FINAL}")
        return [row["id"] for row in rows]

    async def page(self, before: tuple[float, str] | None, count: int) -> list[PredictionSummary]:
        """The newest `count` predictions, or the newest of those older than a (created_at, id)."""
        columns = ", ".join(column.name for column in fields(PredictionSummary))
        created_at, prediction_id = before or (float("inf"), "")
        rows = await self._select(
            f"SELECT {columns} FROM predictions WHERE (created_at, id) < (?, ?)"
            " ORDER BY created_at DESC, id DESC LIMIT ?",
            created_at, prediction_id, count,
        )  # fmt: skip
        return [PredictionSummary(**row) for row in rows]

    async def add_file(self, file: StoredFile, content: bytes, before: float, max_bytes: int) -> bool:
        """Store a file. If all would have more than `max_bytes`, the oldest of those made `before` are deleted.

        False: that is not enough.
        """
        added: bool = await self._run(self._add_file, vars(file) | {"content": content}, before, max_bytes)
        return added

    async def file(self, file_id: str, now: float) -> StoredFile | None:
        rows = await self._select(f"SELECT {FILE_COLUMNS} FROM files WHERE id = ? AND expires_at > ?", file_id, now)
        return StoredFile(**rows[0]) if rows else None

    async def file_content(self, file_id: str) -> bytes | None:
        rows = await self._select("SELECT content FROM files WHERE id = ?", file_id)
        return rows[0]["content"] if rows else None

    async def files(self, count: int, now: float) -> list[StoredFile]:
        """The newest `count` files."""
        rows = await self._select(
            f"SELECT {FILE_COLUMNS} FROM files WHERE expires_at > ? ORDER BY created_at DESC, id LIMIT ?", now, count
        )
        return [StoredFile(**row) for row in rows]

    async def delete_file(self, file_id: str) -> None:
        await self._run(self._delete, "DELETE FROM files WHERE id = ?", file_id)

    async def delete_expired_files(self, now: float) -> None:
        await self._run(self._delete, f"DELETE FROM files WHERE expires_at <= ? AND {UNUSED}", now)

    async def secret(self, name: str, create: Callable[[], str]) -> str:
        """This gateway's secret of that name, created on first use."""
        await self._write("INSERT OR IGNORE INTO secrets VALUES (?, ?)", name, create())
        return str((await self._select("SELECT value FROM secrets WHERE name = ?", name))[0]["value"])

    async def prune(self, max_age: float, max_count: int, max_bytes: int) -> None:
        """Delete finished predictions older than `max_age` seconds, then the oldest beyond the other limits.

        Their texts are then in neither the database nor its write-ahead log.
        """
        await self._run(self._prune, max_age, max_count, max_bytes)

    async def _write(self, sql: str, *values: Any) -> None:
        """Return once committed. Statements are committed in the order of the calls."""
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(((sql, values), committed))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        await asyncio.shield(committed)

    async def _flush(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            error: Exception | None = None
            try:
                await self._run(self._commit, [statement for statement, _ in batch])
            except Exception as caught:
                error = caught
            for _, committed in batch:
                if not committed.done():
                    committed.set_exception(error) if error else committed.set_result(None)

    def _commit(self, statements: Iterable[Statement]) -> None:
        with self._database:  # one transaction
            for sql, values in statements:
                self._database.execute(sql, values)

    def _prune(self, max_age: float, max_count: int, max_bytes: int) -> None:
        ended = f"status IN {FINAL}"
        with self._database:  # one transaction
            aged = self._database.execute(
                f"DELETE FROM predictions WHERE {ended} AND completed_at < ?", (time.time() - max_age,)
            )
            surplus = self._database.execute(
                f"DELETE FROM predictions WHERE {ended} AND id IN (SELECT id FROM (SELECT id,"
                f" row_number() OVER newest AS position, sum(size) OVER newest AS bytes FROM predictions WHERE {ended}"
                " WINDOW newest AS (ORDER BY completed_at DESC, id)) WHERE position > ? OR bytes > ?)",
                (max_count, max_bytes),
            )
        if aged.rowcount or surplus.rowcount:
            self._empty_log()

    def _add_file(self, row: dict[str, Any], before: float, max_bytes: int) -> bool:
        deleted = False
        with self._database:
            (used,) = self._database.execute("SELECT coalesce(sum(size), 0) FROM files").fetchone()
            old = f"SELECT id, size FROM files WHERE created_at < ? AND {UNUSED} ORDER BY created_at"
            for file_id, size in self._database.execute(old, (before,)).fetchall():
                if used + row["size"] <= max_bytes:
                    break
                self._database.execute("DELETE FROM files WHERE id = ?", (file_id,))
                used, deleted = used - size, True
            fits: bool = used + row["size"] <= max_bytes
            if fits:
                columns, marks = ", ".join(row), ", ".join("?" * len(row))
                self._database.execute(f"INSERT INTO files ({columns}) VALUES ({marks})", (*row.values(),))
        if deleted:
            self._empty_log()
        return fits

    def _delete(self, sql: str, *values: Any) -> None:
        with self._database:
            deleted = self._database.execute(sql, values)
        if deleted.rowcount:
            self._empty_log()

    def _empty_log(self) -> None:
        """The write-ahead log still has the deleted rows."""
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    async def _select(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await self._run(lambda: [dict(row) for row in self._database.execute(sql, values)])
        return rows

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_private()
            self._database = sqlite3.connect(self._path, timeout=1, check_same_thread=False)
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")  # two gateways would run each prediction twice
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("PRAGMA secure_delete=ON")  # overwrite deleted rows; not every build's default
            self._database.executescript(SCHEMA)
            columns = {row["name"] for row in self._database.execute("PRAGMA table_info(predictions)")}
            if "deadline" not in columns:  # a database of a gateway without deadlines
                self._database.execute("ALTER TABLE predictions ADD COLUMN deadline REAL")
            self._database.execute("BEGIN IMMEDIATE").close()
            self._database.commit()
        except (OSError, sqlite3.Error) as error:
            reason = "another gateway uses it" if "locked" in str(error) else str(error)
            raise SettingsError(f"--database {self._path} cannot be used: {reason}") from None

    def _make_private(self) -> None:
        """Create the database for its owner only; tighten an existing one and its logs: they hold users' texts."""
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        for suffix in ("", "-wal", "-shm"):
            path = self._path.with_name(self._path.name + suffix)
            try:
                path.chmod(0o600)
            except FileNotFoundError:
                continue
            except PermissionError:
                raise SettingsError(
                    f"--database {path} belongs to another user, who could read the texts in it: name a new file"
                ) from None


def _prediction(row: dict[str, Any]) -> Prediction:
    events = tuple(filter(None, (row["webhook_events"] or "").split(",")))
    return Prediction(**row | {"webhook_events": events, "webhook_due": bool(row["webhook_due"])})
