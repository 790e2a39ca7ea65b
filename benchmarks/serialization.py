"""Serialization: milliseconds to return two vectors of 4,096 floats through the real Cog server, with no model time.

The client is http.client on one keep-alive connection. It reads the whole response and parses it outside of the
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

from benchmarks.report import Json, cells, interleaved, log, percentile, ratio_lines, ratios, seconds, table
from e5_cog import openapi, static_schema
from e5_cog.repository import ROOT
from e5_cog.server import free_port, python_path, stop

PREDICTOR = ROOT / "benchmarks" / "serialization_predictor.py"
ENCODINGS = {
    "list": "list of lists of float",
    "float": "this package, float",
    "base64": "this package, base64",
    "nothing": "no vectors (the server itself)",
}
WARM_UP = 3
START_SECONDS = 60


def measure(count: int) -> Json:
    """Send `count` requests per encoding."""
    log(f"serialization: {WARM_UP} + {count} requests each …")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        samples = interleaved({encoding: _request(connection, encoding) for encoding in ENCODINGS}, count, WARM_UP)
        connection.close()
    vectors, dimensions = _check_same_vectors({encoding: samples[encoding][-1].value for encoding in ENCODINGS})
    rows: list[Json] = [
        {
            "encoding": encoding,
            "p50_milliseconds": percentile(seconds(samples[encoding]), 50) * 1e3,
            "p90_milliseconds": percentile(seconds(samples[encoding]), 90) * 1e3,
            "response_bytes": len(samples[encoding][-1].value),
        }
        for encoding in ENCODINGS
    ]
    p50: dict[str, float] = {row["encoding"]: row["p50_milliseconds"] for row in rows}
    return {
        "vectors": vectors,
        "dimensions": dimensions,
        "requests": count,
        "encodings": rows,
        "ratios": ratios(p50, [("list", "float"), ("list", "base64")]),
    }


def card(result: Json) -> str:
    named = [
        row | {"name": ENCODINGS[row["encoding"]], "kb": row["response_bytes"] / 1e3} for row in result["encodings"]
    ]
    rows = cells(named, "{name}|{p50_milliseconds:.2f}|{p90_milliseconds:.2f}|{kb:.1f}")
    return "\n".join(
        [
            f"Serialization: request to response through Cog's server, model time 0, {result['vectors']} vectors of "
            f"{result['dimensions']:,}, {result['requests']} requests each, interleaved",
            table(["what predict() returns", "p50 ms", "p90 ms", "kB"], rows),
            "  ratio of p50:",
            *ratio_lines(result["ratios"]),
        ]
    )


@contextmanager
def running(folder: Path) -> Iterator[int]:
    """Run Cog's server with the benchmark's predictor from `folder`, on a free port of 127.0.0.1. Yields the port."""
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
        _wait_until_ready(port, process, log_file)
        yield port
    finally:
        stop(process)


def _environment(port: int, concurrency: int) -> dict[str, str]:
    """The variables that scripts/serve.py sets. The server starts its worker with the first `python` on PATH.

    With a concurrency of 1 the server (coglet 0.23.1) sometimes rejects the next request of a sequential client with
    409: it sends the response before it frees the slot.
    """
    return os.environ | {
        "COG_PREDICT_TYPE_STUB": f"{PREDICTOR.name}:Predictor",
        "COG_MAX_CONCURRENCY": str(concurrency),
        "PORT": str(port),
        "PYTHONPATH": python_path(),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log_file: Path) -> None:
    """Raise RuntimeError with the end of the log if the server exits or is not ready after 60 s."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health-check")
            if json.loads(connection.getresponse().read())["status"] == "READY":
                return
        except OSError:
            pass  # not listening yet
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"Cog's server did not start; its log ends with:\n{log_file.read_text('utf-8')[-2000:]}")


def _request(connection: http.client.HTTPConnection, encoding: str) -> Callable[[int], bytes]:
    body = json.dumps({"input": {"encoding": encoding}})

    def send(_: int) -> bytes:
        connection.request("POST", "/predictions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"the server answered {response.status}: {content[:500]!r}")
        return content

    return send


def _check_same_vectors(responses: dict[str, bytes]) -> tuple[int, int]:
    """Return the number of vectors and their dimensions. Raises RuntimeError if encodings return different vectors."""
    outputs = {encoding: json.loads(content)["output"] for encoding, content in responses.items()}
    rows = [np.frombuffer(base64.b64decode(text), "<f4") for text in outputs["base64"]["embeddings_base64"]]
    vectors = np.stack(rows)
    for encoding in ("list", "float"):
        if not np.array_equal(np.array(outputs[encoding]["embeddings"], dtype=np.float32), vectors):
            raise RuntimeError(f"encoding {encoding!r} returns other vectors than base64: this is a bug")
    return vectors.shape[0], vectors.shape[1]
