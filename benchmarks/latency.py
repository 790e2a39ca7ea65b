"""Latency: milliseconds from one query and one document to their score, beside the model card's loop.

Beside these ends, the engine by itself: from token ids that are ready to vectors on the host, which is what the limit
speaks of, the time in which the device can read the linear layers' weights once.
"""

from collections.abc import Callable, Sequence

from sentence_transformers import SentenceTransformer

from benchmarks import variants
from benchmarks.counts import Counts
from benchmarks.engines import CARD, OURS, RIVAL, Card, Engines, pair_texts, score_ours, score_rival
from benchmarks.report import (
    Json,
    Keep,
    Sample,
    discard,
    interleaved,
    log,
    megabytes,
    percentile,
    ratio_lines,
    ratios,
    seconds,
    table,
)
from benchmarks.texts import Pair, Texts
from e5 import DEFAULT_TASK
from e5.embedder import Embedder

WARM_UP = 3
"""Pairs that are not counted."""

ENGINE, EAGER = "engine alone", "engine, no graphs"
"""This package's forward pass with the copy back; and the same with every kernel launched by itself."""

Name = tuple[str, str]
"""Engine and dtype."""


def measure(
    engines: Engines, texts: Texts, count: int, counts: Counts, bytes_per_second: float, keep: Keep = discard
) -> Json:
    """`count` different pairs, each through every engine: tokenise, forward, score.

    `bytes_per_second`: how fast the device reads, and `counts` what it has to.
    """
    model = engines.default.model
    pairs = texts.pairs(WARM_UP + count)
    prompted = [pair_texts(model, pair) for pair in pairs]
    log(f"latency: {WARM_UP} + {count} pairs …")
    actions: dict[Name, Callable[[int], float]] = {}
    for dtype in engines.dtypes:
        if dtype in engines.rivals:
            actions[CARD, dtype] = _card(Card(engines.rivals[dtype], model), prompted)
            actions[RIVAL, dtype] = _rival(engines.rivals[dtype], prompted)
        actions[OURS, dtype] = _ours(engines.ours[dtype], pairs)
    ids = [engines.default.tokenize([pair.query], [pair.document], DEFAULT_TASK).ids for pair in pairs]
    limits = {dtype: counts.read_milliseconds(bytes_per_second, weight_bytes(dtype)) for dtype in engines.dtypes}
    result: Json = {
        "pairs": count,
        "query_tokens": len(ids[0][0]),
        "document_tokens": len(ids[0][1]),
        "reference": engines.reference,
        "engines": [],
        "ratios": [],
        "graphs": {dtype: capture_cost(engines.ours[dtype]) for dtype in engines.dtypes},
    }
    alone = interleaved(_engine_actions(engines, ids), count, WARM_UP)
    result["engine_alone"] = [_engine_row(name, alone[name], limits[name[1]]) for name in alone]
    keep(result)
    samples = interleaved(actions, count, WARM_UP)
    truth = [sample.value for sample in samples[CARD, engines.reference]]
    result["engines"] = [_row(name, samples[name], truth) for name in actions]
    p50 = {(row["engine"], row["dtype"]): row["p50_milliseconds"] for row in result["engines"]}
    result["ratios"] = ratios(
        p50, [((other, dtype), (OURS, dtype)) for dtype in engines.shared_dtypes for other in (CARD, RIVAL)]
    )
    return result


def weight_bytes(dtype: str) -> int:
    """Bytes of one weight of a linear layer."""
    return {"float32": 4, variants.FLOAT8: 1}.get(dtype, 2)


def capture_cost(embedder: Embedder) -> Json | None:
    """What the engine's graphs have cost so far; None where it has none."""
    graphs = variants.graphs(embedder)
    return None if graphs is None else {"seconds": graphs.seconds, "bytes": graphs.bytes}


def engine(embedder: Embedder, ids: Sequence[list[list[int]]], graphs: bool = True) -> Callable[[int], float]:
    """One packed pass over the ids of a pair, until its vectors are on the host."""
    switch = variants.unchanged if graphs else variants.without_graphs

    def forward(index: int) -> float:
        with switch(embedder):
            return float(embedder.forward(ids[index % len(ids)]).cpu()[0, 0])

    return forward


def _engine_actions(engines: Engines, ids: list[list[list[int]]]) -> dict[Name, Callable[[int], float]]:
    actions: dict[Name, Callable[[int], float]] = {}
    for dtype, embedder in engines.ours.items():
        actions[ENGINE, dtype] = engine(embedder, ids)
        if variants.graphs(embedder) is not None:
            actions[EAGER, dtype] = engine(embedder, ids, graphs=False)
    return actions


def _engine_row(name: Name, samples: Sequence[Sample[float]], limit: float) -> Json:
    p50 = percentile(seconds(samples), 50) * 1e3
    return {
        "engine": name[0],
        "dtype": name[1],
        "p50_milliseconds": p50,
        "p90_milliseconds": percentile(seconds(samples), 90) * 1e3,
        "limit_milliseconds": limit,
        "ratio_to_limit": p50 / limit,
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
    alone = [
        [
            row["engine"],
            row["dtype"],
            f"{row['p50_milliseconds']:.2f}",
            f"{row['p90_milliseconds']:.2f}",
            f"{row['limit_milliseconds']:.2f}",
            f"{row['ratio_to_limit']:.2f}",
        ]
        for row in result["engine_alone"]
    ]
    return "\n".join(
        [
            f"Latency: one query of {result['query_tokens']} tokens and one document of {result['document_tokens']} to "
            f"their score (0–100), {result['pairs']} different pairs, interleaved",
            table(["engine", "dtype", "p50 ms", "p90 ms", "max |Δ score|"], rows, text_columns=2),
            "  ratio of p50:",
            *ratio_lines(result["ratios"]),
            f"  The score's difference is to the {CARD}'s loop in {result['reference']}, which scores in that dtype.",
            "  Token ids to vectors on the host; limit: the linear layers' weights read once at measured bandwidth.",
            table(["", "dtype", "p50 ms", "p90 ms", "limit ms", "p50 / limit"], alone, text_columns=2),
            *(
                f"  Graphs in {dtype}: {cost['seconds']:.2f} s and {megabytes(cost['bytes'])} to capture them"
                for dtype, cost in result["graphs"].items()
                if cost
            ),
        ]
    )
