"""The cost of an answer: request to response through the real Cog server, model time zero, two vectors of 4,096 floats.

The client is the standard library's, on one kept connection; the response is read to its end, and parsed outside the
measured time.
"""

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.report import Json, interleaved, log, percentile, ratio_lines, ratios, seconds, table
from e5_cog import openapi, static_schema
from e5_cog.repository import ROOT
from e5_cog.server import free_port, python_path

PREDICTOR = ROOT / "scripts" / "bench_answer_predictor.py"
WAYS = {
    "list": "list of lists of float",
    "float": "this package, float",
    "base64": "this package, base64",
    "nothing": "no vectors (the server itself)",
}
WARM_UP = 3
START_SECONDS = 60


def measure(count: int) -> Json:
    """`count` requests for each way."""
    log(f"answer: {WARM_UP} + {count} requests each …")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        samples = interleaved({way: _request(connection, way) for way in WAYS}, count, WARM_UP)
        connection.close()
    shape = _same_vectors({way: samples[way][-1].value for way in WAYS})
    rows: list[Json] = [
        {
            "way": way,
            "p50_milliseconds": percentile(seconds(samples[way]), 50) * 1e3,
            "p90_milliseconds": percentile(seconds(samples[way]), 90) * 1e3,
            "response_bytes": len(samples[way][-1].value),
        }
        for way in WAYS
    ]
    p50: dict[str, float] = {row["way"]: row["p50_milliseconds"] for row in rows}
    return {
        "vectors": shape[0],
        "dimensions": shape[1],
        "requests": count,
        "ways": rows,
        "ratios": ratios(p50, [("list", "float"), ("list", "base64")]),
    }


def card(result: Json) -> str:
    rows = [
        [
            WAYS[row["way"]],
            f"{row['p50_milliseconds']:.2f}",
            f"{row['p90_milliseconds']:.2f}",
            f"{row['response_bytes'] / 1e3:.1f}",
        ]
        for row in result["ways"]
    ]
    return "\n".join(
        [
            f"Answer: request to response through Cog's server, model time 0, {result['vectors']} vectors of "
            f"{result['dimensions']:,}, {result['requests']} requests each, interleaved",
            table(["what predict() returns", "p50 ms", "p90 ms", "kB"], rows),
            "  ratio of p50:",
            *ratio_lines(result["ratios"]),
        ]
    )


@contextmanager
def running(folder: Path) -> Iterator[int]:
    """Cog's server on a free port of 127.0.0.1, serving the benchmark's predictor out of `folder`. Yields the port."""
    shutil.copy(PREDICTOR, folder)
    signature = static_schema.read(PREDICTOR)
    openapi.write_atomically(folder / ".cog" / openapi.SCHEMA.name, json.dumps(openapi.openapi(signature)))
    port, log_file = free_port(), folder / "server.log"
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"],
            cwd=folder,
            env=_environment(port, signature.concurrency),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(port, process, log_file)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(port: int, concurrency: int) -> dict[str, str]:
    """As scripts/serve.py sets it: the server starts its worker with the `python` that PATH finds first.

    With a concurrency of 1 the server (coglet 0.23.1) now and then refuses the next request of a client that waits
    for each answer (409): it sends the answer before it frees the slot.
    """
    return os.environ | {
        "COG_PREDICT_TYPE_STUB": f"{PREDICTOR.name}:Predictor",
        "COG_MAX_CONCURRENCY": str(concurrency),
        "PORT": str(port),
        "PYTHONPATH": python_path(),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def _wait(port: int, process: subprocess.Popen[bytes], log_file: Path) -> None:
    """Until the server is ready. Raises RuntimeError with the end of its log when it will not be."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health-check")
            if json.loads(connection.getresponse().read())["status"] == "READY":
                return
        except OSError:
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"Cog's server did not start; its log ends with:\n{log_file.read_text('utf-8')[-2000:]}")


def _request(connection: http.client.HTTPConnection, way: str) -> Callable[[int], bytes]:
    body = json.dumps({"input": {"way": way}})

    def send(_: int) -> bytes:
        connection.request("POST", "/predictions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"the server answered {response.status}: {content[:500]!r}")
        return content

    return send


def _same_vectors(responses: dict[str, bytes]) -> tuple[int, int]:
    """How many vectors of how many dimensions came; every way must bring the same ones. Raises RuntimeError."""
    outputs = {way: json.loads(content)["output"] for way, content in responses.items()}
    rows = [np.frombuffer(base64.b64decode(text), "<f4") for text in outputs["base64"]["embeddings_base64"]]
    vectors = np.stack(rows)
    for way in ("list", "float"):
        if not np.array_equal(np.array(outputs[way]["embeddings"], dtype=np.float32), vectors):
            raise RuntimeError(f"the way {way!r} brings other vectors than base64: this is a bug")
    return vectors.shape[0], vectors.shape[1]
