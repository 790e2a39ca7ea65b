"""What a corpus run adds to `embed_documents` on the same texts: planning, reading, pipeline and writing.

Both run in this process on one loaded model, so neither has a start-up.
"""

import shutil
from pathlib import Path

import numpy as np

from benchmarks.corpora import programs
from benchmarks.corpora.comparison import Input
from benchmarks.report import Json, cells, discard, interleaved, log, median, seconds, table
from benchmarks.throughput import agreement
from e5.corpus import plan as plans
from e5.corpus import run as runs
from e5.corpus.identity import identify
from e5.corpus.parts import Folder
from e5.corpus.plan import Options
from e5.corpus.rows import Columns
from e5.embedder import Embedder
from e5.settings import Settings
from e5.vectors import Vectors

LIBRARY, CORPUS = "embed_documents, one call", "corpus run"
GOAL = 1.05


def measure(settings: Settings, embedder: Embedder, texts: list[str], source: Input, folder: Path, rounds: int) -> Json:
    """`texts`: those of `source`. `folder`: for outputs, which are removed after each round."""
    options = Options(identify(settings), columns=Columns(id="id"))
    size = plans.unit_size(settings.resolve(), "cpu")
    tokens = embedder.tokenize([], texts, "").total
    reference: dict[str, Vectors] = {}

    def corpus(number: int) -> int:
        out = Folder(str(folder / f"run-{number}"))
        plan = plans.settle(out, options, source.files, size)
        if failures := runs.run(plan, out, embedder, runs.pending(plan, out), discard):
            raise RuntimeError(f"units failed: {failures}")
        return len(plan.units)

    def library(_: int) -> int:
        reference[LIBRARY] = embedder.embed_documents(texts, progress=False)
        return 1

    log(f"overhead: {len(texts)} texts, {tokens} tokens, 1 + {rounds} rounds …")
    samples = interleaved({LIBRARY: library, CORPUS: corpus}, rounds)
    differences = agreement(programs.read_vectors(folder / "run-0", source.ids), reference[LIBRARY])
    shutil.rmtree(folder)
    rows: list[Json] = [
        {
            "way": name,
            "seconds": seconds(samples[name]),
            "median_seconds": median(seconds(samples[name])),
            "texts_per_second": len(texts) / median(seconds(samples[name])),
        }
        for name in samples
    ]
    pairs = np.array(rows[1]["seconds"]) / np.array(rows[0]["seconds"])
    return {
        "texts": len(texts),
        "tokens": tokens,
        "files": len(source.files),
        "units": samples[CORPUS][0].value,
        "rounds": rounds,
        "ways": rows,
        "ratio": rows[1]["median_seconds"] / rows[0]["median_seconds"],
        "ratios_by_round": pairs.tolist(),
        **differences,
    }


def card(result: Json) -> str:
    rows = [row | {"low": min(row["seconds"]), "high": max(row["seconds"])} for row in result["ways"]]
    by_round = result["ratios_by_round"]
    return "\n".join(
        [
            f"Overhead: {result['texts']:,} documents, {result['tokens']:,} tokens, float32, in one process without "
            f"start-up; interleaved rounds: {result['rounds']}",
            table(
                ["", "median s", "range s", "texts/s"],
                cells(rows, "{way}|{median_seconds:.3f}|{low:.3f}–{high:.3f}|{texts_per_second:.1f}"),
            ),
            f"  ratio of medians, {CORPUS} / embed_documents: {result['ratio']:.3f} (goal: at most {GOAL}; by round "
            f"{min(by_round):.3f} to {max(by_round):.3f})",
            f"  {CORPUS}: plan {result['files']} files, read, embed and write {result['units']} units. "
            f"Relative L2 at most {result['max_relative_l2']:.1e}, lowest cosine {result['min_cosine']:.7f}.",
        ]
    )
