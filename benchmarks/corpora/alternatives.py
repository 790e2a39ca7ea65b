"""The programs that a user would write instead of running scripts/corpus.py, as the libraries' documentation says.

    python -m benchmarks.corpora.alternatives NAME JOB

NAME is one of the functions in PROGRAMS, JOB a `Job` as JSON. Each program reads JSONL files of {id, text} and writes
Parquet files of {id, vector}. Packages are imported in the functions, so that no program pays for those of another.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAY_BATCH = 128
"""Texts that Ray Data gives to an actor at a time; `encode` sorts them by length."""
RAY_TASK_CPUS = 1
"""As Ray counts CPUs, besides those of the actors, for its tasks that read and write files: without them it hangs."""


@dataclass(frozen=True)
class Job:
    """`prompt`: in front of each text. `batches`: texts in a forward pass; more than one only for `try_batches`."""

    inputs: list[str]
    out: str
    checkpoint: str
    prompt: str
    batches: list[int]
    processes: int


def library(job: Job) -> None:
    """This package: all texts in one call. The E5_* variables name the model."""
    from e5 import Embedder

    ids, texts = _read(job.inputs)
    _write(ids, Embedder.load().embed_documents(texts, progress=False), job.out)


def pool(job: Job) -> None:
    """sentence-transformers' pool of processes."""
    ids, texts = _read(job.inputs)
    model = _load(job.checkpoint)
    processes = model.start_multi_process_pool(["cpu"] * job.processes)
    vectors = model.encode(texts, pool=processes, prompt=job.prompt, batch_size=job.batches[0], show_progress_bar=False)
    model.stop_multi_process_pool(processes)
    _write(ids, vectors, job.out)


def ray_data(job: Job) -> None:
    """Ray Data on a local Ray: a stream from files through actors to files."""
    import ray

    cpus = job.processes + RAY_TASK_CPUS
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_json(job.inputs).map_batches(
        RayActor,
        fn_constructor_kwargs={"checkpoint": job.checkpoint, "prompt": job.prompt, "batch": job.batches[0]},
        batch_size=RAY_BATCH,
        compute=ray.data.ActorPoolStrategy(size=job.processes),
        num_cpus=1,
    ).write_parquet(job.out)
    ray.shutdown()


class RayActor:
    """Embeds batches with a model that it has loaded once."""

    def __init__(self, checkpoint: str, prompt: str, batch: int) -> None:
        self.model, self.prompt, self.batch = _load(checkpoint), prompt, batch

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        texts = rows["text"].tolist()
        vectors = self.model.encode(texts, prompt=self.prompt, batch_size=self.batch, show_progress_bar=False)
        return {"id": rows["id"], "vector": vectors}


def try_batches(job: Job) -> None:
    """Write the CPU time that one process of sentence-transformers takes with each batch size, as JSON."""
    _, texts = _read(job.inputs)
    model = _load(job.checkpoint)
    seconds = {}
    for batch in job.batches:
        model.encode(texts[:batch], prompt=job.prompt, batch_size=batch, show_progress_bar=False)  # warm up
        started = time.process_time()
        model.encode(texts, prompt=job.prompt, batch_size=batch, show_progress_bar=False)
        seconds[batch] = time.process_time() - started
    Path(job.out).write_text(json.dumps(seconds), "ascii")


def _load(checkpoint: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(checkpoint, device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"})


def _read(inputs: list[str]) -> tuple[list[str], list[str]]:
    """Ids and texts."""
    rows = [json.loads(line) for path in inputs for line in Path(path).read_text("utf-8").splitlines()]
    return [row["id"] for row in rows], [row["text"] for row in rows]


def _write(ids: list[str], vectors: Any, out: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    Path(out).mkdir(parents=True)
    pq.write_table(pa.table({"id": ids, "vector": column}), Path(out) / "vectors.parquet")


PROGRAMS = {program.__name__: program for program in (library, pool, ray_data, try_batches)}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Job(**json.loads(sys.argv[2])))
