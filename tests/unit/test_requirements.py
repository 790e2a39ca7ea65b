"""The image's requirements resolve on the package index for its Python and platform, as Cog's build does it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e5_cog.repository import ROOT

UNREACHABLE = ("dns error", "failed to fetch", "error sending request", "operation timed out")


def test_image_s_requirements_resolve_for_python_3_12_on_linux() -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    assert uv is not None, "uv is in the dev extra"
    target = ["--python-version", "3.12", "--python-platform", "x86_64-unknown-linux-gnu"]
    command = [uv, "pip", "compile", "--quiet", "--no-header", *target, "requirements.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and any(sign in done.stderr.lower() for sign in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    resolved = {line.split()[0] for line in done.stdout.splitlines() if "==" in line and not line.startswith(" ")}
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pinned = {line for line in lines if line and not line.startswith("#")}
    assert "torch==2.11.0" in pinned
    assert pinned <= resolved and len(resolved) > 20
