"""Latency: milliseconds from one query and one document to their score, compared with the model card's loop.

Also times this package's forward pass from token IDs to vectors on the host, which is what the limit describes: the
time in which the device can read the linear layers' weights once.
"""

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks import variants
from benchmarks.counts import Counts
from benchmarks.engines import (
    MODEL_CARD,
    OURS,
    RIVAL,
    EngineKey,
    Engines,
    ModelCardLoop,
    pair_texts,
    score_ours,
    score_rival,
)
from benchmarks.report import (
    Json,
    Keep,
    Sample,
    T,
    cells,
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
from benchmarks.texts import RandomTexts
from e5 import DEFAULT_TASK
from e5.embedder import Embedder
from e5.tokens import TokenIds

WARM_UP = 3
"""Pairs, not counted."""

FORWARD, EAGER = "forward pass", "forward pass, no graphs"
"""This package's forward pass with the copy to the host; and the same with each kernel launched from Python."""


def measure(
    engines: Engines, texts: RandomTexts, count: int, counts: Counts, bytes_per_second: float, keep: Keep = discard
) -> Json:
    """Score `count` different pairs with every engine: tokenize, forward, score.

    `bytes_per_second`: the device's memory bandwidth; `counts`: the weights that it has to read.
    """
    model = engines.default.model
    pairs = texts.pairs(WARM_UP + count)
    prompted = [pair_texts(model, pair) for pair in pairs]
    log(f"latency: {WARM_UP} + {count} pairs …")
    actions: dict[EngineKey, Callable[[int], float]] = {}
    for dtype in engines.dtypes:
        if dtype in engines.rivals:
            actions[MODEL_CARD, dtype] = _by_index(ModelCardLoop(engines.rivals[dtype], model).score, prompted)
            actions[RIVAL, dtype] = _by_index(partial(score_rival, engines.rivals[dtype]), prompted)
        actions[OURS, dtype] = _by_index(partial(score_ours, engines.ours[dtype]), pairs)
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
    forward = interleaved(_forward_actions(engines, ids), count, WARM_UP)
    result["forward"] = [_forward_row(key, forward[key], limits[key[1]]) for key in forward]
    keep(result)
    samples = interleaved(actions, count, WARM_UP)
    reference = [sample.value for sample in samples[MODEL_CARD, engines.reference]]
    result["engines"] = [_row(key, samples[key], reference) for key in actions]
    p50 = {(row["engine"], row["dtype"]): row["p50_milliseconds"] for row in result["engines"]}
    result["ratios"] = ratios(
        p50, [((other, dtype), (OURS, dtype)) for dtype in engines.shared_dtypes for other in (MODEL_CARD, RIVAL)]
    )
    return result


def weight_bytes(dtype: str) -> int:
    """Bytes per weight of a linear layer."""
    return {"float32": 4, variants.FLOAT8: 1}.get(dtype, 2)


def capture_cost(embedder: Embedder) -> Json | None:
    """Seconds and bytes spent on capturing CUDA graphs; None if the engine has none."""
    graphs = variants.graphs(embedder)
    return None if graphs is None else {"seconds": graphs.seconds, "bytes": graphs.bytes}


def forward_action(embedder: Embedder, ids: Sequence[list[TokenIds]], graphs: bool = True) -> Callable[[int], float]:
    """One packed forward pass over a pair's token IDs, including the copy of its vectors to the host."""
    switch = variants.unchanged if graphs else variants.without_graphs

    def forward(index: int) -> float:
        with switch(embedder):
            return float(embedder.forward(ids[index % len(ids)]).cpu()[0, 0])

    return forward


def _forward_actions(engines: Engines, ids: list[list[TokenIds]]) -> dict[EngineKey, Callable[[int], float]]:
    actions: dict[EngineKey, Callable[[int], float]] = {}
    for dtype, embedder in engines.ours.items():
        actions[FORWARD, dtype] = forward_action(embedder, ids)
        if variants.graphs(embedder) is not None:
            actions[EAGER, dtype] = forward_action(embedder, ids, graphs=False)
    return actions


def _forward_row(key: EngineKey, samples: Sequence[Sample[float]], limit: float) -> Json:
    p50 = percentile(seconds(samples), 50) * 1e3
    return {
        "engine": key[0],
        "dtype": key[1],
        "p50_milliseconds": p50,
        "p90_milliseconds": percentile(seconds(samples), 90) * 1e3,
        "limit_milliseconds": limit,
        "ratio_to_limit": p50 / limit,
    }


def _by_index(score: Callable[[T], float], inputs: Sequence[T]) -> Callable[[int], float]:
    return lambda index: score(inputs[index])


def _row(key: EngineKey, samples: Sequence[Sample[float]], reference: Sequence[float]) -> Json:
    differences = [abs(sample.value - score) for sample, score in zip(samples, reference, strict=True)]
    return {
        "engine": key[0],
        "dtype": key[1],
        "p50_milliseconds": percentile(seconds(samples), 50) * 1e3,
        "p90_milliseconds": percentile(seconds(samples), 90) * 1e3,
        "max_score_difference": max(differences),
    }


def card(result: Json) -> str:
    rows = cells(
        result["engines"], "{engine}|{dtype}|{p50_milliseconds:.2f}|{p90_milliseconds:.2f}|{max_score_difference:.4f}"
    )
    formats = "{engine}|{dtype}|{p50_milliseconds:.2f}|{p90_milliseconds:.2f}|{limit_milliseconds:.2f}"
    forward = cells(result["forward"], formats + "|{ratio_to_limit:.2f}")
    return "\n".join(
        [
            f"Latency: one query of {result['query_tokens']} tokens and one document of {result['document_tokens']} to "
            f"their score (0–100), {result['pairs']} different pairs, interleaved",
            table(["engine", "dtype", "p50 ms", "p90 ms", "max |Δ score|"], rows, text_columns=2),
            "  ratio of p50:",
            *ratio_lines(result["ratios"]),
            f"  Score differences are to the {MODEL_CARD}'s loop in {result['reference']}, which scores in that dtype.",
            "  Token IDs to vectors on the host; limit: the linear layers' weights read once at measured bandwidth.",
            table(["", "dtype", "p50 ms", "p90 ms", "limit ms", "p50 / limit"], forward, text_columns=2),
            *(
                f"  Graphs in {dtype}: {cost['seconds']:.2f} s and {megabytes(cost['bytes'])} to capture them"
                for dtype, cost in result["graphs"].items()
                if cost
            ),
        ]
    )
