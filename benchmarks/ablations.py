"""Ablations: the speed of the engine with one part switched off at a time, on the same texts.

Measures many texts in tokens per second, tokenizing included, and one query and one document in milliseconds from token
IDs to vectors on the host. All ablations are interleaved in one process. docs/performance-notes.md has the predictions.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from benchmarks import variants
from benchmarks.report import (
    Json,
    Keep,
    Sample,
    cells,
    discard,
    first_line,
    interleaved,
    log,
    median,
    percentile,
    seconds,
    table,
)
from benchmarks.texts import RandomTexts
from e5 import DEFAULT_TASK
from e5.embedder import Embedder
from e5.tokens import TokenIds, Tokens

BUDGETS = (4096, 8192, 16384, 32768)
PAIRS, CALLS_PER_ROUND = 20, 10
WARM_UP = 3
UNCHANGED = "unchanged"

Switch = Callable[[Embedder], AbstractContextManager[None]]
Samples = dict[str, list[Sample[None]]]


@dataclass(frozen=True)
class Ablation:
    """One change to the engine.

    `requires`: the key in `variants.missing` that rules it out. `tokenize`: when texts are tokenized: while the device
    computes ("overlapped"), before the first batch ("first"), or before the timer starts ("untimed").
    """

    name: str
    switch: Switch = variants.unchanged
    requires: str = ""
    tokenize: Literal["overlapped", "first", "untimed"] = "overlapped"


ABLATIONS = (
    Ablation(UNCHANGED),
    Ablation("torch's operators instead of fused kernels", variants.without_kernels, "kernels"),
    Ablation("no CUDA graphs", variants.without_graphs, "graphs"),
    Ablation("products by cuBLASLt", variants.cublaslt, "products"),
    Ablation("float16 products summed in float32", variants.sums_in_float32, "products"),
    Ablation("synchronised after each batch", variants.synchronised, "synchronised"),
    Ablation("all texts tokenized first", tokenize="first"),
    Ablation("tokenized before the timer", tokenize="untimed"),
    *(Ablation(f"batches of {size:,} tokens", partial(variants.budget, tokens=size)) for size in BUDGETS),
    Ablation("dense attention by length", variants.dense_attention, "attention"),
)
PAIR_ABLATIONS = tuple(
    ablation
    for ablation in ABLATIONS
    if ablation.requires in ("kernels", "graphs", "attention", "products") or ablation.name == UNCHANGED
)
FLOAT8 = Ablation(variants.FLOAT8, requires=variants.FLOAT8)


def measure(texts: RandomTexts, load: Callable[[str], Embedder], count: int, rounds: int, keep: Keep = discard) -> Json:
    """`load`: loads the same weights in another dtype, for float8."""
    embedder = texts.embedder
    documents = texts.mixed(count)
    tokens = embedder.tokenize([], documents, "")
    pairs = [embedder.tokenize([pair.query], [pair.document], DEFAULT_TASK).ids for pair in texts.pairs(PAIRS)]
    skipped = variants.missing(embedder)
    engines = {ablation: embedder for ablation in ABLATIONS if ablation.requires not in skipped}
    if FLOAT8.requires not in skipped:
        try:
            engines[FLOAT8] = load(FLOAT8.name)
        except Exception as error:  # measure the other ablations all the same
            skipped[FLOAT8.name] = first_line(error)
    log(f"ablations: {len(engines)} on {count} texts, {tokens.total} tokens, {rounds} rounds …")
    batch_actions = {
        ablation.name: _batch_action(ablation, engine, documents, tokens) for ablation, engine in engines.items()
    }
    pair_actions = {
        ablation.name: _pair_action(ablation, engine, pairs)
        for ablation, engine in engines.items()
        if ablation in PAIR_ABLATIONS or ablation is FLOAT8
    }
    batch_samples: Samples = {}
    pair_samples: Samples = {}

    def summary() -> Json:
        return {
            "device": embedder.device,
            "dtype": embedder.dtype,
            "texts": count,
            "tokens": tokens.total,
            "batch_tokens": embedder.max_batch_tokens,
            "rounds": rounds,
            "pairs": CALLS_PER_ROUND * rounds,
            "ablations": _batch_rows(batch_samples, tokens.total),
            "pair_ablations": _pair_rows(pair_samples),
            "skipped": skipped,
        }

    def keep_round(samples: Samples) -> None:
        batch_samples.update(samples)
        keep(summary())

    # Pairs first: they take seconds, so a time limit that cuts off the rest leaves them complete.
    pair_samples |= _interleave(pair_actions, CALLS_PER_ROUND * rounds, WARM_UP, skipped)
    keep(summary())
    batch_samples |= _interleave(batch_actions, rounds, 1, skipped, keep_round)
    return summary()


def _batch_rows(samples: Samples, tokens: int) -> list[Json]:
    medians = {name: median(seconds(calls)) for name, calls in samples.items()}
    return [
        {
            "ablation": name,
            "seconds": seconds(calls),
            "tokens_per_second": tokens / medians[name],
            "ratio": medians[UNCHANGED] / medians[name],
        }
        for name, calls in samples.items()
    ]


def _pair_rows(samples: Samples) -> list[Json]:
    p50 = {name: percentile(seconds(calls), 50) for name, calls in samples.items()}
    return [
        {
            "ablation": name,
            "p50_milliseconds": p50[name] * 1e3,
            "p90_milliseconds": percentile(seconds(calls), 90) * 1e3,
            "ratio": p50[UNCHANGED] / p50[name],
        }
        for name, calls in samples.items()
    ]


def _interleave(
    actions: Mapping[str, Callable[[int], None]],
    rounds: int,
    warm_up: int,
    skipped: dict[str, str],
    after_round: Callable[[Samples], None] = discard,
) -> Samples:
    """Warm up and interleave the actions. An action that fails in warm-up goes to `skipped` with its error."""
    working = {}
    for name, action in actions.items():
        started = time.perf_counter()
        try:
            for number in range(warm_up):
                action(number)
            working[name] = action
        except Exception as error:
            if name == UNCHANGED:
                raise
            skipped[name] = first_line(error)
        log(f"ablations: {name}: warm-up took {time.perf_counter() - started:.1f} s")
    return interleaved(working, rounds, warm_up=0, after_round=after_round)


def _batch_action(
    ablation: Ablation, embedder: Embedder, documents: list[str], tokens: Tokens
) -> Callable[[int], None]:
    def embed(_: int) -> None:
        with ablation.switch(embedder):
            if ablation.tokenize == "overlapped":
                embedder.embed_documents(documents, progress=False)
            elif ablation.tokenize == "first":
                embedder.embed_tokens(embedder.tokenize([], documents, ""))
            else:
                embedder.embed_tokens(tokens)

    return embed


def _pair_action(ablation: Ablation, embedder: Embedder, pairs: list[list[TokenIds]]) -> Callable[[int], None]:
    def embed(number: int) -> None:
        with ablation.switch(embedder):
            embedder.forward(pairs[number % len(pairs)]).cpu()

    return embed


def card(result: Json) -> str:
    batches = cells(result["ablations"], "{ablation}|{tokens_per_second:,.0f}|{ratio:.3f}")
    formats = "{ablation}|{p50_milliseconds:.3f}|{p90_milliseconds:.3f}|{ratio:.3f}"
    pairs = cells(result["pair_ablations"], formats)
    return "\n".join(
        [
            f"Ablations: {result['texts']:,} documents, {result['tokens']:,} tokens in {result['dtype']}, batches of "
            f"{result['batch_tokens']:,} tokens; interleaved rounds: {result['rounds']}; medians",
            table(["", "tokens/s", f"÷ {UNCHANGED}"], batches),
            f"  One query and one document, token IDs to vectors on the host, {result['pairs']} calls each:",
            table(["", "p50 ms", "p90 ms", f"speed ÷ {UNCHANGED}"], pairs),
            *(f"  {name}: not measured, {reason}" for name, reason in result["skipped"].items()),
        ]
    )
