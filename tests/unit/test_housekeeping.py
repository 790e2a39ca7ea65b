"""Old empty folders are removed; recent ones and those with files stay."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from e5_cog import housekeeping
from e5_cog.housekeeping import clean_periodically, remove_empty_folders


def make(folder: Path, *inner: str, age: float) -> Path:
    for name in inner:
        (folder / name).mkdir(parents=True)
    os.utime(folder, (time.time() - age, time.time() - age))
    return folder


def test_only_old_empty_folders_are_removed(tmp_path: Path) -> None:
    old = make(tmp_path / "old", "inputs", "outputs", age=700)
    young = make(tmp_path / "young", "inputs", age=10)
    holding = make(tmp_path / "holding", "inputs", age=700)
    (holding / "inputs" / "spilled.json").write_text("{}")
    file = tmp_path / "file"
    file.touch()
    target = make(tmp_path.parent / f"{tmp_path.name}-target", "inside", age=700)
    link = tmp_path / "link"
    link.symlink_to(target)
    assert remove_empty_folders(tmp_path, time.time() - 600) == 1
    assert not old.exists()
    assert all(path.exists() for path in (young, holding / "inputs" / "spilled.json", file, link, target / "inside"))


def test_missing_folder_is_no_error(tmp_path: Path) -> None:
    assert remove_empty_folders(tmp_path / "nowhere", time.time()) == 0


def test_task_cleans_again_after_each_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "COG_FOLDERS", tmp_path)
    monkeypatch.setattr(housekeeping, "INTERVAL_SECONDS", 0.01)

    async def main() -> None:
        task = asyncio.create_task(clean_periodically())
        for name in ("first", "second"):
            old = make(tmp_path / name, "inputs", age=housekeeping.MAX_AGE_SECONDS + 100)
            async with asyncio.timeout(20):
                while old.exists():
                    await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(main())
