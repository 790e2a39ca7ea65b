"""The embedded model's quality figures, computed from the published files.

Uses the dev splits, the questions of manuals among the fetched sources, and those test sets that are in --data:
stsb-en-test.csv, trecqa-test.csv, and sts12.csv to sts16.csv (a year's subsets without OnWN and FNWN, in the format of
the STS-B files).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch.nn import functional

from benchmarks import quality
from e5 import catalog, tasks
from e5.embedder import Embedder
from e5.prompts import query_prompt
from e5.settings import Settings
from training import faqs
from training.dataset import BOS, EOS
from training.network import ModelConfig, Weights, forward, pack
from training.task_instructions import UNSEEN

Json = dict[str, Any]
Instructions = tuple[str | None, str | None]
"""For similarity and for retrieval. None: the texts are embedded without an instruction."""
STS_YEARS = ("sts12", "sts13", "sts14", "sts15", "sts16")
SIMILARITY_SETS = ("stsb-en-dev", "stsb-en-test", *STS_YEARS)
RETRIEVAL_SETS = ("trecqa-dev", "trecqa-test")
UNRELATED, EQUIVALENT = 1.0, 4.0
"""On STS-B's scale of 0 to 5: below 1 two sentences have different topics, from 4 on they have the same meaning."""


def evaluate(folder: Path, data: Path, sources: Path) -> Json:
    """All figures in float32. `folder`: has base and adapter. `data`: has the labelled sets. `sources`: has manuals."""
    manuals = faqs.read(sources)
    merged = _load(folder, "adapter")
    base = _load(folder / "base", "merged")
    published = (tasks.instruction(quality.SIMILARITY_TASK), tasks.instruction(quality.RETRIEVAL_TASK))
    plain = (None, None)
    figures = {
        "instructed": _figures(merged, data, manuals, [published])[0],
        "plain": _figures(merged, data, manuals, [plain])[0],
        "without the adapter, instructed": _figures(base, data, manuals, [published])[0],
        "without the adapter, plain": _figures(base, data, manuals, [plain])[0],
    }
    unseen = _figures(merged, data, manuals, [(task, task) for task in UNSEEN])
    return {"figures": figures, "unseen": unseen, "scores": _scores(merged, data)}


def _load(folder: Path, source: str) -> Embedder:
    return Embedder.from_settings(
        Settings(model=catalog.EMBEDDED, weights=folder, source=source, device="cpu", dtype="float32")
    )


def _figures(
    model: Embedder, data: Path, manuals: Sequence[faqs.Manual], instructions: Sequence[Instructions]
) -> list[dict[str, float]]:
    """For each pair of instructions, the figures of each set in `data` and of the manuals, if there are any."""
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
                metrics = quality.ranking(model, candidates, task)
                row |= {f"{name} MRR": metrics.mrr, f"{name} MAP": metrics.map}
    if manuals:
        for row, (_, task) in zip(rows, instructions, strict=True):
            row["manuals MRR"] = 100 * float(np.mean(faqs.reciprocal_ranks(model, manuals, task)))
    for row in rows:
        if all(name in row for name in STS_YEARS):
            row["sts12 to 16"] = float(np.mean([row[name] for name in STS_YEARS]))
    return rows


def _scores(model: Embedder, data: Path) -> Json:
    """Mean scores (100 × cosine) of STS-B dev's equivalent pairs, its unrelated pairs, and random pairs."""
    pairs = quality.read_pairs(data / quality.SIMILARITY)
    scores = 100 * quality.cosines(model, [(pair.first, pair.second) for pair in pairs], None)
    labels = np.array([pair.similarity for pair in pairs])
    half = len(pairs) // 2
    shifted = [(pair.first, other.second) for pair, other in zip(pairs, pairs[half:] + pairs[:half], strict=True)]
    random_scores = 100 * quality.cosines(model, shifted, None)
    return {
        "same meaning": float(scores[labels >= EQUIVALENT].mean()),
        "unlike": float(scores[labels < UNRELATED].mean()),
        "any two": float(random_scores.mean()),
        "any two, 95th percentile": float(np.percentile(random_scores, 95)),
    }


def card(result: Json) -> str:
    """The figures as a Markdown table."""
    figures: dict[str, dict[str, float]] = result["figures"]
    names = list(figures["instructed"])
    lines = ["| merged model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]

    def row(label: str, values: Sequence[float]) -> str:
        return f"| {label} | " + " | ".join(f"{value:.1f}" for value in values) + " |"

    lines += [row(label, [values[name] for name in names]) for label, values in figures.items()]
    unseen: list[dict[str, float]] = result["unseen"]
    for label, reduce in (("mean", np.mean), ("lowest", np.min)):
        values = [float(reduce([per_task[name] for per_task in unseen])) for name in names]
        lines.append(row(f"{len(unseen)} unseen instructions, {label}", values))
    scores = ", ".join(f"{name} {value:.1f}" for name, value in result["scores"].items())
    return "\n".join([*lines, "", f"Mean scores of STS-B dev's pairs, plain: {scores}."])


def sts_check(config: ModelConfig, data: Path, tokenizer_file: Path, task: str | None) -> Callable[[Weights], str]:
    """A check for the training loop: Spearman's correlation on STS-B dev, with an instruction or without."""
    pairs = quality.read_pairs(data / quality.SIMILARITY)
    labels = np.array([pair.similarity for pair in pairs])
    prompts = [query_prompt("instruct", task or "", text) for pair in pairs for text in (pair.first, pair.second)]
    encodings = Tokenizer.from_file(str(tokenizer_file)).encode_batch_fast(prompts, add_special_tokens=False)
    batch = pack([[BOS, *encoding.ids, EOS] for encoding in encodings])

    def check(weights: Weights) -> str:
        vectors = functional.normalize(forward(weights, config, batch))[batch.order.argsort()].cpu()
        cosines = (vectors[::2] * vectors[1::2]).sum(1).double().numpy()
        return f"STS-B dev, {'instructed' if task else 'plain'}: {100 * quality.spearman(cosines, labels):.2f}"

    return check
