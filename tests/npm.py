"""Install npm packages for a test, or skip it where that is impossible."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNREACHABLE = re.compile(r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH)\b")
INSTALL = [
    "install",
    "--no-audit",
    "--no-fund",
    "--ignore-scripts",
    "--no-package-lock",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
]


def install(folder: Path, untested: str) -> None:
    """Install what package.json in the folder names. Skips without Node, npm or a connection to the registry.

    `untested`: what is not tested then.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{untested}: `{program}` is not installed")
    done = subprocess.run(["npm", *INSTALL], cwd=folder, capture_output=True, text=True, timeout=150, check=False)
    if done.returncode and (code := UNREACHABLE.search(done.stderr)):
        pytest.skip(f"{untested}: npm's registry cannot be reached ({code[0]})")
    assert done.returncode == 0, done.stderr
