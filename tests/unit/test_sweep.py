"""Empty folders go, young ones and whatever holds a file stay."""

import os
import time
from pathlib import Path

from e5_cog.housekeeping import sweep


def make(folder: Path, *inner: str, age: float) -> Path:
    for name in inner:
        (folder / name).mkdir(parents=True)
    os.utime(folder, (time.time() - age, time.time() - age))
    return folder


def test_old_empty_folders_go_and_all_else_stays(tmp_path: Path) -> None:
    old = make(tmp_path / "old", "inputs", "outputs", age=700)
    young = make(tmp_path / "young", "inputs", age=10)
    holding = make(tmp_path / "holding", "inputs", age=700)
    (holding / "inputs" / "spilled.json").write_text("{}")
    file = tmp_path / "file"
    file.touch()
    target = make(tmp_path.parent / f"{tmp_path.name}-target", "inside", age=700)
    link = tmp_path / "link"
    link.symlink_to(target)
    assert sweep(tmp_path, time.time() - 600) == 1
    assert not old.exists()
    assert all(path.exists() for path in (young, holding / "inputs" / "spilled.json", file, link, target / "inside"))


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert sweep(tmp_path / "nowhere", time.time()) == 0
