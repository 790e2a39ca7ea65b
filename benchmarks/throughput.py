"""Throughput: tokens per second on documents of mixed length, and agreement of the vectors with sentence-transformers.

sentence-transformers runs at its default batch size and, on a GPU, at a larger one too; the faster one counts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.engines import OURS, RIVAL, EngineKey, Engines, check_same_ids, document_texts
from benchmarks.report import (
    Json,
    Keep,
    Sample,
    cells,
    discard,
    interleaved,
    log,
    median,
    ratio_lines,
    ratios,
    seconds,
    table,
)
from benchmarks.texts import RandomTexts
from e5.embedder import Embedder
from e5.vectors import Vectors

RIVAL_BATCHES = {"cpu": (1, 8, 32), "cuda": (32, 128)}
"""Batch sizes in texts, of which the fastest counts: sentence-transformers' default, smaller ones, which pad less, and
one that keeps a GPU busier."""

Contender = tuple[EngineKey, int]
"""An engine and its batch size in texts; 0 for this package, which counts its batches in tokens."""


def measure(
    engines: Engines,
    texts: RandomTexts,
    count: int,
    rounds: int,
    rival_batches: Sequence[int],
    limit: float,
    keep: Keep = discard,
) -> Json:
    """Embed `count` documents, tokenizing included. The first round warms up on the same texts.

    `limit`: tokens/s that the device's matrix rate allows; each row has its share of it.
    """
    documents = texts.mixed(count)
    tokens = check_same_ids(engines, documents)
    lengths = sorted(map(len, engines.default.tokenize([], documents, "").ids))
    log(f"throughput: {count} texts, {tokens} tokens, 1 + {rounds} rounds …")
    prompted = document_texts(engines.default.model, documents)
    actions: dict[Contender, Callable[[int], Vectors]] = {}
    for dtype in engines.dtypes:
        if dtype in engines.rivals:
            for batch in rival_batches:
                actions[(RIVAL, dtype), batch] = _theirs(engines.rivals[dtype], prompted, batch)
        actions[(OURS, dtype), 0] = _ours(engines.ours[dtype], documents)
    failed = _warm_up(actions)

    def summary(samples: dict[Contender, list[Sample[Vectors]]]) -> Json:
        fastest = _fastest(samples)
        reference = samples[fastest[RIVAL, engines.reference]][-1].value
        rows = [_row(key, samples[fastest[key]], fastest[key][1], tokens, limit, reference) for key in fastest]
        speed = {(row["engine"], row["dtype"]): row["tokens_per_second"] for row in rows}
        first, last = engines.dtypes[0], engines.dtypes[-1]
        pairs = [((OURS, dtype), (RIVAL, dtype)) for dtype in engines.shared_dtypes]
        pairs += [((OURS, last), (RIVAL, first)), ((OURS, last), (OURS, first))] if first != last else []
        slower = [
            {"dtype": key[1], "batch_texts": batch, "tokens_per_second": tokens / median(seconds(samples[key, batch]))}
            for key, batch in samples
            if key[0] == RIVAL and fastest[key][1] != batch
        ]
        return {
            "device": engines.default.device,
            "texts": count,
            "tokens": tokens,
            "median_tokens": lengths[len(lengths) // 2],
            "longest_tokens": lengths[-1],
            "rounds": rounds,
            "rival_batch_texts": list(rival_batches),
            "rival_slower_batches": slower,
            "rival_failed_batches": failed,
            "rival_pads": not getattr(engines.rivals[first][0], "can_flatten_inputs", False),
            "our_batch_tokens": engines.default.max_batch_tokens,
            "limit_tokens_per_second": limit,
            "reference": engines.reference,
            "engines": rows,
            "ratios": ratios(speed, pairs),
        }

    return summary(interleaved(actions, rounds, warm_up=0, after_round=lambda samples: keep(summary(samples))))


def _warm_up(actions: dict[Contender, Callable[[int], Vectors]]) -> list[Json]:
    """Call each action once. Drop larger batches of sentence-transformers that run out of memory."""
    failed = []
    for key, batch in list(actions):
        try:
            actions[key, batch](0)
        except torch.OutOfMemoryError:
            if key[0] == OURS or batch == min(size for other, size in actions if other == key):
                raise
            failed.append({"dtype": key[1], "batch_texts": batch})
            del actions[key, batch]
            torch.cuda.empty_cache()
    return failed


def _fastest(samples: dict[Contender, list[Sample[Vectors]]]) -> dict[EngineKey, Contender]:
    """The fastest batch size of each engine and dtype."""
    fastest: dict[EngineKey, Contender] = {}
    for contender in samples:
        key = contender[0]
        if key not in fastest or median(seconds(samples[contender])) < median(seconds(samples[fastest[key]])):
            fastest[key] = contender
    return fastest


def _ours(embedder: Embedder, documents: list[str]) -> Callable[[int], Vectors]:
    return lambda _: embedder.embed_documents(documents, progress=False)


def _theirs(rival: SentenceTransformer, prompted: list[str], batch: int) -> Callable[[int], Vectors]:
    def encode(_: int) -> Vectors:
        vectors: Vectors = rival.encode(prompted, batch_size=batch, show_progress_bar=False)
        return vectors

    return encode


def _row(
    key: EngineKey, samples: Sequence[Sample[Vectors]], batch: int, tokens: int, limit: float, reference: Vectors
) -> Json:
    median_seconds = median(seconds(samples))
    return {
        "engine": key[0],
        "dtype": key[1],
        "seconds": seconds(samples),
        "median_seconds": median_seconds,
        "tokens_per_second": tokens / median_seconds,
        "share_of_limit": tokens / median_seconds / limit,
        **({"batch_texts": batch} if batch else {}),
        **agreement(samples[-1].value, reference),
    }


def agreement(vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """Smallest cosine and largest ‖a − b‖ / ‖b‖ over the rows of two [N, D], in float64, where NaN stays NaN."""
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    norms: Any = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / (norms[0] * norms[1])
    relative_l2 = np.linalg.norm(a - b, axis=1) / norms[1]
    return {"min_cosine": float(cosine.min()), "max_relative_l2": float(relative_l2.max())}


def card(result: Json) -> str:
    head = ["engine", "dtype", "tokens/s", "of limit", "median s", "range s", "min cosine", "max rel. L2"]
    formats = "{engine}|{dtype}|{tokens_per_second:,.0f}|{share_of_limit:.0%}|{median_seconds:.3f}|"
    formats += "{fastest:.3f}–{slowest:.3f}|{min_cosine:.6f}|{max_relative_l2:.1e}"
    with_range = [row | {"fastest": min(row["seconds"]), "slowest": max(row["seconds"])} for row in result["engines"]]
    rows = cells(with_range, formats)
    padding = "padded" if result["rival_pads"] else "not padded (flash attention)"
    allocator = ["  All engines share one process, with this package's allocator settings."]
    return "\n".join(
        [
            f"Throughput: {result['texts']:,} documents, {result['tokens']:,} tokens (median "
            f"{result['median_tokens']}, longest {result['longest_tokens']:,}), tokenizing included; "
            f"interleaved rounds: {result['rounds']}",
            table(head, rows, text_columns=2),
            "  ratio of tokens/s, medians:",
            *ratio_lines(result["ratios"]),
            f"  Limit: {result['limit_tokens_per_second']:,.0f} tokens/s, the linear layers' FLOPs over the measured "
            "matrix rate.",
            f"  Same weights, texts, token IDs and device. Cosine and distance are to {RIVAL} {result['reference']}.",
            f"  Batches: {RIVAL} {_batches(result)}, {padding}; {OURS} {result['our_batch_tokens']:,} tokens, packed.",
            *(allocator if result["device"] == "cpu" else []),
        ]
    )


def _batches(result: Json) -> str:
    """sentence-transformers' fastest batch size in texts, and the results of the other sizes."""
    used = dict.fromkeys(row["batch_texts"] for row in result["engines"] if row["engine"] == RIVAL)
    text = " or ".join(map(str, used)) + " texts"
    slower = [
        f"{row['batch_texts']} in {row['dtype']}: {row['tokens_per_second']:,.0f} tokens/s"
        for row in result["rival_slower_batches"]
    ]
    slower += [f"{row['batch_texts']} in {row['dtype']}: out of memory" for row in result["rival_failed_batches"]]
    return f"{text} ({'; '.join(slower)})" if slower else text
