"""The figures by which the embedded model is judged, of the files as they are published.

On the dev splits; on the test splits, too, where --data has them: stsb-en-test.csv, trecqa-test.csv, and sts12.csv to
sts16.csv (all subsets of a year but OnWN and FNWN, in the form of the STS-B files).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import quality
from e5 import catalog, tasks
from e5.embedder import Embedder
from e5.settings import Settings
from training.task_instructions import UNSEEN

Json = dict[str, Any]
Instructions = tuple[str | None, str | None]
"""For similarity, and for retrieval; None: plain."""
SIMILARITY_SETS = ("stsb-en-dev", "stsb-en-test", "sts12", "sts13", "sts14", "sts15", "sts16")
RETRIEVAL_SETS = ("trecqa-dev", "trecqa-test")
UNRELATED, RELATED = 1.0, 4.0
"""STS-B's 0 to 5: below the first two sentences are about different things, from the second on they mean the same."""


def evaluate(folder: Path, data: Path) -> Json:
    """`folder`: with base and adapter. Everything in float32."""
    merged = _load(folder, "adapter")
    bare = _load(folder / "base", "merged")
    rows = {
        "instructed": (merged, True),
        "plain": (merged, False),
        "without the adapter, instructed": (bare, True),
        "without the adapter, plain": (bare, False),
    }
    found = {name: _figures(model, data, [_trained(instructed)])[0] for name, (model, instructed) in rows.items()}
    unseen = _figures(merged, data, [(task, task) for task in UNSEEN])
    pairs = quality.read_pairs(data / quality.SIMILARITY)
    return {"figures": found, "unseen": unseen, "scores": _scores(merged, pairs)}


def _load(folder: Path, source: str) -> Embedder:
    return Embedder.from_settings(
        Settings(model=catalog.EMBEDDED, weights=folder, source=source, device="cpu", dtype="float32")
    )


def _trained(instructed: bool) -> Instructions:
    if not instructed:
        return None, None
    return tasks.instruction(quality.SIMILARITY_TASK), tasks.instruction(quality.RETRIEVAL_TASK)


def _figures(
    model: Embedder, data: Path, instructions: Sequence[tuple[str | None, str | None]]
) -> list[dict[str, float]]:
    """For each pair of instructions, the figures of each set that is there."""
    rows: list[dict[str, float]] = [{} for _ in instructions]
    for name in SIMILARITY_SETS:
        if (path := data / f"{name}.csv").exists():
            pairs = quality.read_pairs(path)
            for row, (task, _) in zip(rows, instructions, strict=True):
                row[name] = quality.similarity(model, pairs, task)
    for name in RETRIEVAL_SETS:
        if (path := data / f"{name}.csv").exists():
            candidates = quality.read_candidates(path)
            for row, (_, task) in zip(rows, instructions, strict=True):
                found = quality.ranking(model, candidates, task)
                row |= {f"{name} MRR": found.mrr, f"{name} MAP": found.map}
    for row in rows:
        if all(name in row for name in SIMILARITY_SETS[2:]):
            row["sts12 to 16"] = float(np.mean([row[name] for name in SIMILARITY_SETS[2:]]))
    return rows


def _scores(model: Embedder, pairs: Sequence[quality.SentencePair]) -> Json:
    """Mean scores of pairs that mean the same, of pairs that people found unlike, and of any two sentences."""
    found = 100 * quality.cosines(model, [(one.first, one.second) for one in pairs], None)
    gold = np.array([one.similarity for one in pairs])
    half = len(pairs) // 2
    shifted = [(one.first, other.second) for one, other in zip(pairs, [*pairs[half:], *pairs[:half]], strict=True)]
    chance = 100 * quality.cosines(model, shifted, None)
    return {
        "same meaning": float(found[gold >= RELATED].mean()),
        "unlike": float(found[gold < UNRELATED].mean()),
        "any two": float(chance.mean()),
        "any two, 95th percentile": float(np.percentile(chance, 95)),
    }


def card(result: Json) -> str:
    """As people read it: a table in Markdown."""
    figures: dict[str, dict[str, float]] = result["figures"]
    names = list(figures["instructed"])
    lines = ["| merged model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]

    def row(label: str, values: Sequence[float]) -> str:
        return f"| {label} | " + " | ".join(f"{value:.1f}" for value in values) + " |"

    lines += [row(label, [values[name] for name in names]) for label, values in figures.items()]
    unseen: list[dict[str, float]] = result["unseen"]
    for label, over in (("mean", np.mean), ("lowest", np.min)):
        values = [float(over([one[name] for one in unseen])) for name in names]
        lines.append(row(f"{len(unseen)} unseen instructions, {label}", values))
    said = ", ".join(f"{name} {value:.1f}" for name, value in result["scores"].items())
    return "\n".join([*lines, "", f"Mean scores of STS-B dev's pairs, plain: {said}."])
