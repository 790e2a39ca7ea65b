"""Outside of a clone, the wheel has the embedded model and its gateway starts."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from e5_cog.repository import ROOT
from e5_cog.server import free_port, stop


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content. Dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("e5_cog-*.whl")
    target = folder / "site"
    install = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True, text=True)
    return target


def environment(site: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(site)}


def test_wheel_has_three_packages_and_no_generic_names(site: Path) -> None:
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"e5", "e5_cog", "e5_gateway"}


def test_embedded_model_loads_outside_of_a_clone(site: Path, tmp_path: Path) -> None:
    program = (
        "import e5; print(e5.__file__); print(e5.Embedder.load(device='cpu').embed_documents(['one', 'two']).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(site), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(site / "e5" / "__init__.py"), "(2, 256)"]


def test_gateway_starts_outside_of_a_clone(site: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "e5_gateway", "--target", f"http://127.0.0.1:{free_port()}", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(site), stdout=log, stderr=log)
    try:
        assert status(f"http://127.0.0.1:{port}/health-check", process) == 503  # its target does not answer
        for path in ("", "page/app.js", "page/style.css", "page/examples.json", "page/tasks.json"):
            assert status(f"http://127.0.0.1:{port}/{path}", process) == 200
    finally:
        stop(process)
    assert (tmp_path / ".gateway" / "predictions.sqlite3").is_file()


def test_gateway_needs_a_target_outside_of_a_clone(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "e5_gateway"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(site), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--target is missing" in done.stderr and done.stderr.count("\n") == 1


def status(url: str, process: "subprocess.Popen[bytes]") -> int:
    """The status of the first response."""
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:  # not listening yet
            time.sleep(0.05)
    raise AssertionError(f"no answer; exit status {process.poll()}")
