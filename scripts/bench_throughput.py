"""Throughput: tokens a second on documents of mixed length, beside sentence-transformers; and how the vectors agree."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from e5.embedder import Embedder
from e5.vectors import Vectors
from scripts.bench_engines import OURS, RIVAL, Engines, check_same_ids, document_texts
from scripts.bench_report import Json, Sample, interleaved, log, median, ratio_lines, ratios, seconds, table
from scripts.bench_texts import Texts

RIVAL_BATCH = 32
"""sentence-transformers' own default, in texts."""

Name = tuple[str, str]
"""Engine and dtype."""


def measure(engines: Engines, texts: Texts, count: int, rounds: int) -> Json:
    """`count` documents, tokenising included. The first round warms up, with the same texts."""
    documents = texts.mixed(count)
    tokens = check_same_ids(engines, documents)
    lengths = sorted(map(len, engines.default.tokenize([], documents, "").ids))
    log(f"throughput: {count} texts, {tokens} tokens, 1 + {rounds} rounds …")
    prompted = document_texts(engines.default.model, documents)
    actions: dict[Name, Callable[[int], Vectors]] = {}
    for dtype in engines.dtypes:
        actions[RIVAL, dtype] = _theirs(engines.rivals[dtype], prompted)
        actions[OURS, dtype] = _ours(engines.ours[dtype], documents)
    samples = interleaved(actions, rounds)
    reference = samples[RIVAL, engines.reference][-1].value
    rows = [_row(name, samples[name], tokens, reference) for name in actions]
    speed = {(row["engine"], row["dtype"]): row["tokens_per_second"] for row in rows}
    first, last = engines.dtypes[0], engines.dtypes[-1]
    pairs = [((OURS, dtype), (RIVAL, dtype)) for dtype in engines.dtypes]
    pairs += [((OURS, last), (RIVAL, first))] if first != last else []
    return {
        "device": engines.default.device,
        "texts": count,
        "tokens": tokens,
        "median_tokens": lengths[len(lengths) // 2],
        "longest_tokens": lengths[-1],
        "rounds": rounds,
        "rival_batch_texts": RIVAL_BATCH,
        "rival_pads": not getattr(engines.rivals[first][0], "can_flatten_inputs", False),
        "our_batch_tokens": engines.default.max_batch_tokens,
        "reference": engines.reference,
        "engines": rows,
        "ratios": ratios(speed, pairs),
    }


def _ours(embedder: Embedder, documents: list[str]) -> Callable[[int], Vectors]:
    return lambda _: embedder.embed_documents(documents, progress=False)


def _theirs(rival: SentenceTransformer, prompted: list[str]) -> Callable[[int], Vectors]:
    def encode(_: int) -> Vectors:
        vectors: Vectors = rival.encode(prompted, batch_size=RIVAL_BATCH, show_progress_bar=False)
        return vectors

    return encode


def _row(name: Name, samples: Sequence[Sample[Vectors]], tokens: int, reference: Vectors) -> Json:
    middle = median(seconds(samples))
    return {
        "engine": name[0],
        "dtype": name[1],
        "seconds": seconds(samples),
        "median_seconds": middle,
        "tokens_per_second": tokens / middle,
        **agreement(samples[-1].value, reference),
    }


def agreement(vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """The worst of any row, [N, D] each: smallest cosine, largest ‖a − b‖ / ‖b‖. In float64: NaN stays NaN."""
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    norms: Any = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / (norms[0] * norms[1])
    distance = np.linalg.norm(a - b, axis=1) / norms[1]
    return {"min_cosine": float(cosine.min()), "max_relative_l2": float(distance.max())}


def card(result: Json) -> str:
    head = ["engine", "dtype", "tokens/s", "median s", "range s", "min cosine", "max rel. L2"]
    rows = [
        [
            row["engine"],
            row["dtype"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['median_seconds']:.3f}",
            f"{min(row['seconds']):.3f}–{max(row['seconds']):.3f}",
            f"{row['min_cosine']:.6f}",
            f"{row['max_relative_l2']:.1e}",
        ]
        for row in result["engines"]
    ]
    padding = "padded" if result["rival_pads"] else "not padded (flash attention)"
    shared = ["  All run in one process, with this package's settings of the allocator."]
    return "\n".join(
        [
            f"Throughput: {result['texts']:,} documents, {result['tokens']:,} tokens (median "
            f"{result['median_tokens']}, longest {result['longest_tokens']:,}), tokenising included; "
            f"interleaved rounds: {result['rounds']}",
            table(head, rows, text_columns=2),
            "  ratio of tokens/s, medians:",
            *ratio_lines(result["ratios"]),
            f"  Same weights, texts, token ids and device. Cosine and distance are to {RIVAL} {result['reference']}.",
            f"  Batches: {RIVAL} {result['rival_batch_texts']} texts, {padding}; "
            f"{OURS} {result['our_batch_tokens']:,} tokens, packed.",
            *(shared if result["device"] == "cpu" else []),
        ]
    )
