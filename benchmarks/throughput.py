"""Throughput: tokens a second on documents of mixed length, beside sentence-transformers; and how the vectors agree.

sentence-transformers runs at its own batch size, and on a GPU at a larger one as well; the better one counts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.engines import OURS, RIVAL, Engines, check_same_ids, document_texts
from benchmarks.report import Json, Keep, Sample, discard, interleaved, log, median, ratio_lines, ratios, seconds, table
from benchmarks.texts import Texts
from e5.embedder import Embedder
from e5.vectors import Vectors

RIVAL_BATCHES = {"cpu": (32,), "cuda": (32, 128)}
"""In texts. sentence-transformers' own default, and what gives a GPU more to do at a time."""

Name = tuple[str, str]
"""Engine and dtype."""
Way = tuple[Name, int]
"""An engine and its batch size in texts; 0 for this package, whose batches are counted in tokens."""


def measure(
    engines: Engines,
    texts: Texts,
    count: int,
    rounds: int,
    rival_batches: Sequence[int],
    limit: float,
    keep: Keep = discard,
) -> Json:
    """`count` documents, tokenising included. The first round warms up, with the same texts.

    `limit`: the tokens/s that the device could compute at most, of which each row tells its share.
    """
    documents = texts.mixed(count)
    tokens = check_same_ids(engines, documents)
    lengths = sorted(map(len, engines.default.tokenize([], documents, "").ids))
    log(f"throughput: {count} texts, {tokens} tokens, 1 + {rounds} rounds …")
    prompted = document_texts(engines.default.model, documents)
    actions: dict[Way, Callable[[int], Vectors]] = {}
    for dtype in engines.dtypes:
        if dtype in engines.rivals:
            actions |= {
                ((RIVAL, dtype), batch): _theirs(engines.rivals[dtype], prompted, batch) for batch in rival_batches
            }
        actions[(OURS, dtype), 0] = _ours(engines.ours[dtype], documents)
    failed = _warm_up(actions)

    def summary(samples: dict[Way, list[Sample[Vectors]]]) -> Json:
        best = _best(samples)
        reference = samples[best[RIVAL, engines.reference]][-1].value
        rows = [_row(name, samples[best[name]], best[name][1], tokens, limit, reference) for name in best]
        speed = {(row["engine"], row["dtype"]): row["tokens_per_second"] for row in rows}
        first, last = engines.dtypes[0], engines.dtypes[-1]
        pairs = [((OURS, dtype), (RIVAL, dtype)) for dtype in engines.shared_dtypes]
        pairs += [((OURS, last), (RIVAL, first)), ((OURS, last), (OURS, first))] if first != last else []
        others = [
            {"dtype": dtype, "batch_texts": batch, "tokens_per_second": tokens / median(seconds(samples[name, batch]))}
            for name, batch in samples
            if name[0] == RIVAL and best[name][1] != batch
            for dtype in [name[1]]
        ]
        return {
            "device": engines.default.device,
            "texts": count,
            "tokens": tokens,
            "median_tokens": lengths[len(lengths) // 2],
            "longest_tokens": lengths[-1],
            "rounds": rounds,
            "rival_batch_texts": list(rival_batches),
            "rival_slower_batches": others,
            "rival_failed_batches": failed,
            "rival_pads": not getattr(engines.rivals[first][0], "can_flatten_inputs", False),
            "our_batch_tokens": engines.default.max_batch_tokens,
            "limit_tokens_per_second": limit,
            "reference": engines.reference,
            "engines": rows,
            "ratios": ratios(speed, pairs),
        }

    return summary(interleaved(actions, rounds, warm_up=0, after_round=lambda samples: keep(summary(samples))))


def _warm_up(actions: dict[Way, Callable[[int], Vectors]]) -> list[Json]:
    """Call each of them once; a larger batch of sentence-transformers that does not fit is taken out of the race."""
    failed = []
    for name, batch in list(actions):
        try:
            actions[name, batch](0)
        except torch.OutOfMemoryError:
            if name[0] == OURS or batch == min(other for one, other in actions if one == name):
                raise
            failed.append({"dtype": name[1], "batch_texts": batch})
            del actions[name, batch]
            torch.cuda.empty_cache()
    return failed


def _best(samples: dict[Way, list[Sample[Vectors]]]) -> dict[Name, Way]:
    """For each engine and dtype its fastest way."""
    best: dict[Name, Way] = {}
    for way in samples:
        name = way[0]
        if name not in best or median(seconds(samples[way])) < median(seconds(samples[best[name]])):
            best[name] = way
    return best


def _ours(embedder: Embedder, documents: list[str]) -> Callable[[int], Vectors]:
    return lambda _: embedder.embed_documents(documents, progress=False)


def _theirs(rival: SentenceTransformer, prompted: list[str], batch: int) -> Callable[[int], Vectors]:
    def encode(_: int) -> Vectors:
        vectors: Vectors = rival.encode(prompted, batch_size=batch, show_progress_bar=False)
        return vectors

    return encode


def _row(
    name: Name, samples: Sequence[Sample[Vectors]], batch: int, tokens: int, limit: float, reference: Vectors
) -> Json:
    middle = median(seconds(samples))
    return {
        "engine": name[0],
        "dtype": name[1],
        "seconds": seconds(samples),
        "median_seconds": middle,
        "tokens_per_second": tokens / middle,
        "share_of_limit": tokens / middle / limit,
        **({"batch_texts": batch} if batch else {}),
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
    head = ["engine", "dtype", "tokens/s", "of limit", "median s", "range s", "min cosine", "max rel. L2"]
    rows = [
        [
            row["engine"],
            row["dtype"],
            f"{row['tokens_per_second']:,.0f}",
            f"{100 * row['share_of_limit']:.0f} %",
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
            f"  Limit: {result['limit_tokens_per_second']:,.0f} tokens/s, the linear layers' operations over the "
            "measured matrix rate.",
            f"  Same weights, texts, token ids and device. Cosine and distance are to {RIVAL} {result['reference']}.",
            f"  Batches: {RIVAL} {_batches(result)}, {padding}; {OURS} {result['our_batch_tokens']:,} tokens, packed.",
            *(shared if result["device"] == "cpu" else []),
        ]
    )


def _batches(result: Json) -> str:
    """sentence-transformers' batch in texts: the better one, and how the others did."""
    used = dict.fromkeys(row["batch_texts"] for row in result["engines"] if row["engine"] == RIVAL)
    text = " or ".join(map(str, used)) + " texts"
    slower = [
        f"{row['batch_texts']} in {row['dtype']}: {row['tokens_per_second']:,.0f} tokens/s"
        for row in result["rival_slower_batches"]
    ]
    slower += [f"{row['batch_texts']} in {row['dtype']}: out of memory" for row in result["rival_failed_batches"]]
    return f"{text} ({'; '.join(slower)})" if slower else text
