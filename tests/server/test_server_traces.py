"""What the real server leaves on the disk and in its environment."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from e5_cog import serve
from e5_cog.housekeeping import COG_FOLDERS, MAX_AGE_SECONDS
from e5_cog.server import free_port, running
from tests.gateways import SETTINGS, until

MARKER = "a text that nobody else may read "


def test_spilled_texts_are_private_and_removed_after_a_crash() -> None:
    name = f"spill-{os.getpid()}"
    body = {"input": {"documents": [MARKER * 20_000] * 10}}  # 6.6 MB; the server keeps up to 6 MiB in memory
    with ThreadPoolExecutor(1) as pool, running({**SETTINGS, "GATEWAY_API_KEY": "secret"}) as server:
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]
        assert len(processes) == 2
        assert not any("GATEWAY_API_KEY" in process.environ() for process in processes)
        processes[1].suspend()  # before it reads the file
        request = pool.submit(httpx.put, f"{server.url}/predictions/{name}", json=body, timeout=60)
        try:
            (spill,) = until(lambda: [*(COG_FOLDERS / name).glob("inputs/spill_*")])
            until(lambda: spill.stat().st_size > 6_600_000)
            folders = [spill.parent, spill.parent.parent, COG_FOLDERS.parent]
            assert [stat.S_IMODE(path.stat().st_mode) for path in (spill, *folders)] == [0o600, 0o700, 0o700, 0o700]
        finally:
            for process in processes:
                process.kill()
        assert isinstance(request.exception(60), httpx.HTTPError)
    assert MARKER in spill.read_text()
    old = spill.stat().st_mtime - MAX_AGE_SECONDS - 1
    for path in (spill, COG_FOLDERS / name):
        os.utime(path, (old, old))
    with running(SETTINGS):
        until(lambda: not (COG_FOLDERS / name).exists())


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False), ("::1", False)])
def test_an_address_beyond_this_machine_is_a_warning(
    host: str, warns: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the moment when this process would become the server."""
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda _, arguments, environment: became.append(arguments))
    monkeypatch.chdir(Path.cwd())  # main() changes it
    umask, port = os.umask(0o022), free_port()
    try:
        serve.main(["--host", host, "--port", str(port)])
    finally:
        os.umask(umask)
    error = capsys.readouterr().err
    words = f"warning: anyone who can reach {host}:{port} may use and shut down the server: put the gateway in front"
    assert (words in error) == warns and bool(error) == warns
    assert len(became) == 1
