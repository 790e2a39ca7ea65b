"""Cog's leftovers are removed: old empty folders and old spilled texts, nothing else. Its folder becomes private."""

import asyncio
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e5_cog import housekeeping
from e5_cog.housekeeping import clean_periodically, keep_private, remove_files, remove_leftovers


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
    assert remove_leftovers(tmp_path, time.time() - 600) == 1
    assert not old.exists()
    assert all(path.exists() for path in (young, holding / "inputs" / "spilled.json", file, link, target / "inside"))


def test_only_old_spilled_texts_of_this_user_are_removed(tmp_path: Path) -> None:
    def spill(name: str, file: str, age: float) -> Path:
        folder = make(tmp_path / name, "inputs", "outputs", age=700)
        path = folder / file
        path.write_text("{}")
        os.utime(path, (time.time() - age, time.time() - age))
        os.utime(folder, (time.time() - 700, time.time() - 700))
        return path

    old = [spill("a", "inputs/spill_1.json", 700), spill("b", "outputs/spill_2.json", 700)]
    kept = [spill("young", "outputs/spill_3.json", 10), spill("other", "inputs/report.json", 700)]
    link = spill("link", "inputs/target", 10).with_name("spill_4.json")
    link.symlink_to("target")
    os.utime(link, (time.time() - 700,) * 2, follow_symlinks=False)
    os.utime(tmp_path / "link", (time.time() - 700,) * 2)
    if os.geteuid() == 0:
        kept.append(spill("foreign", "inputs/spill_5.json", 700))
        os.chown(kept[-1], 65534, 65534)
    assert remove_leftovers(tmp_path, time.time() - 600) == 2
    assert not any(path.exists() or path.parents[1].exists() for path in old)
    assert all(path.exists() for path in [*kept, link])


@pytest.fixture
def cog_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folders = tmp_path / "coglet" / "predictions"
    monkeypatch.setattr(housekeeping, "COG_FOLDERS", folders)
    monkeypatch.setattr(housekeeping, "FILES", folders.parent / "files")
    monkeypatch.setattr(tempfile, "tempdir", None)
    umask = os.umask(0o022)
    yield folders
    os.umask(umask)


@pytest.mark.parametrize("exists", [True, False])
def test_cog_s_folder_and_new_files_are_private(exists: bool, cog_folders: Path) -> None:
    if exists:
        cog_folders.mkdir(parents=True)
    keep_private()
    file = cog_folders.parent / "file"
    file.touch()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file.parent, file)] == [0o700, 0o600]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_another_user_s_folder_is_a_warning(cog_folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    cog_folders.mkdir(parents=True)
    os.chown(cog_folders.parent, 65534, 65534)
    keep_private()
    assert "coglet is not private (it belongs to the user with the id 65534)" in caplog.text
    assert stat.S_IMODE(cog_folders.parent.stat().st_mode) == 0o755


def test_missing_folder_is_no_error(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "nowhere", time.time()) == 0
    assert remove_files(tmp_path / "nowhere", time.time()) == 0


def test_only_old_files_of_jobs_and_downloads_are_removed(tmp_path: Path) -> None:
    def aged(name: str, age: float) -> Path:
        path = tmp_path / name
        if name.startswith("e5-file-"):
            path.mkdir()
            (path / "vectors.parquet").touch()
        else:
            path.touch()
        os.utime(path, (time.time() - age,) * 2)
        return path

    old = [aged("e5-file-a", 700), aged("tmpx.jsonl", 700)]
    kept = [aged("e5-file-b", 10), aged("tmpy.jsonl", 10), aged("other", 700)]
    assert remove_files(tmp_path, time.time() - 600) == 2
    assert not any(path.exists() for path in old) and all(path.exists() for path in kept)


def test_temporary_files_of_the_server_are_private(cog_folders: Path) -> None:
    keep_private()
    assert Path(tempfile.gettempdir()) == housekeeping.FILES and housekeeping.FILES.is_relative_to(cog_folders.parent)
    assert stat.S_IMODE(housekeeping.FILES.parent.stat().st_mode) == 0o700


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
