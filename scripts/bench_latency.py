"""Latency: milliseconds from one query and one document to their score, beside the model card's loop."""

from collections.abc import Callable, Sequence

from sentence_transformers import SentenceTransformer

from e5 import DEFAULT_TASK
from e5.embedder import Embedder
from scripts.bench_engines import CARD, OURS, RIVAL, Card, Engines, pair_texts, score_ours, score_rival
from scripts.bench_report import Json, Sample, interleaved, log, percentile, ratio_lines, ratios, seconds, table
from scripts.bench_texts import Pair, Texts

WARM_UP = 3
"""Pairs that are not counted."""

Name = tuple[str, str]
"""Engine and dtype."""


def measure(engines: Engines, texts: Texts, count: int) -> Json:
    """`count` different pairs, each through every engine: tokenise, forward, score."""
    model = engines.default.model
    pairs = texts.pairs(WARM_UP + count)
    prompted = [pair_texts(model, pair) for pair in pairs]
    log(f"latency: {WARM_UP} + {count} pairs …")
    actions: dict[Name, Callable[[int], float]] = {}
    for dtype in engines.dtypes:
        actions[CARD, dtype] = _card(Card(engines.rivals[dtype], model), prompted)
        actions[RIVAL, dtype] = _rival(engines.rivals[dtype], prompted)
        actions[OURS, dtype] = _ours(engines.ours[dtype], pairs)
    samples = interleaved(actions, count, WARM_UP)
    truth = [sample.value for sample in samples[CARD, engines.reference]]
    rows = [_row(name, samples[name], truth) for name in actions]
    p50 = {(row["engine"], row["dtype"]): row["p50_milliseconds"] for row in rows}
    lengths = list(map(len, engines.default.tokenize([pairs[0].query], [pairs[0].document], DEFAULT_TASK).ids))
    return {
        "pairs": count,
        "query_tokens": lengths[0],
        "document_tokens": lengths[1],
        "reference": engines.reference,
        "engines": rows,
        "ratios": ratios(p50, [((other, dtype), (OURS, dtype)) for dtype in engines.dtypes for other in (CARD, RIVAL)]),
    }


def _card(loop: Card, prompted: list[list[str]]) -> Callable[[int], float]:
    return lambda index: loop.score(prompted[index])


def _rival(rival: SentenceTransformer, prompted: list[list[str]]) -> Callable[[int], float]:
    return lambda index: score_rival(rival, prompted[index])


def _ours(embedder: Embedder, pairs: list[Pair]) -> Callable[[int], float]:
    return lambda index: score_ours(embedder, pairs[index])


def _row(name: Name, samples: Sequence[Sample[float]], truth: Sequence[float]) -> Json:
    differences = [abs(sample.value - score) for sample, score in zip(samples, truth, strict=True)]
    return {
        "engine": name[0],
        "dtype": name[1],
        "p50_milliseconds": percentile(seconds(samples), 50) * 1e3,
        "p90_milliseconds": percentile(seconds(samples), 90) * 1e3,
        "max_score_difference": max(differences),
    }


def card(result: Json) -> str:
    rows = [
        [
            row["engine"],
            row["dtype"],
            f"{row['p50_milliseconds']:.2f}",
            f"{row['p90_milliseconds']:.2f}",
            f"{row['max_score_difference']:.4f}",
        ]
        for row in result["engines"]
    ]
    return "\n".join(
        [
            f"Latency: one query of {result['query_tokens']} tokens and one document of {result['document_tokens']} to "
            f"their score (0–100), {result['pairs']} different pairs, interleaved",
            table(["engine", "dtype", "p50 ms", "p90 ms", "max |Δ score|"], rows, text_columns=2),
            "  ratio of p50:",
            *ratio_lines(result["ratios"]),
            f"  The score's difference is to the {CARD}'s loop in {result['reference']}, which scores in that dtype.",
        ]
    )
