"""Levers: what each part of the engine brings, by switching it off. One change at a time, on the same texts.

Many texts in tokens a second, tokenising included, and one query and one document in milliseconds from token ids to
vectors on the host. All take turns in one process. `docs/performance-notes.md` has what each was predicted to bring.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from benchmarks import variants
from benchmarks.report import Json, Keep, Sample, discard, interleaved, log, median, percentile, seconds, table
from benchmarks.texts import Texts
from e5 import DEFAULT_TASK
from e5.embedder import Embedder
from e5.tokens import Tokens

BUDGETS = (4096, 8192, 16384, 32768)
PAIRS, CALLS_PER_ROUND = 20, 10
WARM_UP = 3
BASE = "as it is"

Switch = Callable[[Embedder], AbstractContextManager[None]]
Samples = dict[str, list[Sample[None]]]


@dataclass(frozen=True)
class Lever:
    """One thing changed. `ready`: how many texts are tokenised before: none, all (measured), all (not measured)."""

    name: str
    switch: Switch = variants.unchanged
    needs: str = ""
    ready: str = "none"


LEVERS = (
    Lever(BASE),
    Lever("torch's operators between products", variants.without_kernels, "kernels"),
    Lever("no graphs", variants.without_graphs, "graphs"),
    Lever("products by cuBLASLt", variants.cublaslt, "products"),
    Lever("float16 products summed in float32", variants.sums_in_float32, "products"),
    Lever("waiting for each batch", variants.synchronised, "synchronised"),
    Lever("all texts tokenised first", ready="measured"),
    Lever("token ids ready", ready="not measured"),
    *(Lever(f"batches of {size:,} tokens", partial(variants.budget, tokens=size)) for size in BUDGETS),
    Lever("attention by dense runs", variants.dense_attention, "attention"),
)
PAIR_LEVERS = tuple(
    lever for lever in LEVERS if lever.needs in ("kernels", "graphs", "attention", "products") or lever.name == BASE
)
FLOAT8 = Lever(variants.FLOAT8, needs=variants.FLOAT8)


def measure(texts: Texts, load: Callable[[str], Embedder], count: int, rounds: int, keep: Keep = discard) -> Json:
    """`load`: this package in another dtype, for float8, on the same weights."""
    embedder = texts.embedder
    documents = texts.mixed(count)
    tokens = embedder.tokenize([], documents, "")
    pairs = [embedder.tokenize([pair.query], [pair.document], DEFAULT_TASK).ids for pair in texts.pairs(PAIRS)]
    skipped = variants.missing(embedder)
    engines = {lever: embedder for lever in LEVERS if lever.needs not in skipped}
    if FLOAT8.needs not in skipped:
        try:
            engines[FLOAT8] = load(FLOAT8.name)
        except Exception as error:  # a reason for this row alone; the others are still worth having
            skipped[FLOAT8.name] = _reason(error)
    log(f"levers: {len(engines)} on {count} texts, {tokens.total} tokens, {rounds} rounds …")
    actions = {lever.name: _many(lever, engine, documents, tokens) for lever, engine in engines.items()}
    pair_actions = {
        lever.name: _pair(lever, engine, pairs)
        for lever, engine in engines.items()
        if lever in PAIR_LEVERS or lever is FLOAT8
    }
    many: Samples = {}
    short: Samples = {}

    def summary() -> Json:
        return {
            "device": embedder.device,
            "dtype": embedder.dtype,
            "texts": count,
            "tokens": tokens.total,
            "batch_tokens": embedder.max_batch_tokens,
            "rounds": rounds,
            "pairs": CALLS_PER_ROUND * rounds,
            "levers": _rows(many, tokens.total),
            "pair_levers": _pair_rows(short),
            "skipped": skipped,
        }

    def keep_round(samples: Samples) -> None:
        many.update(samples)
        keep(summary())

    # The pairs first: they take seconds, and what is late must not cost them.
    short |= _turns(pair_actions, CALLS_PER_ROUND * rounds, WARM_UP, skipped)
    keep(summary())
    many |= _turns(actions, rounds, 1, skipped, keep_round)
    return summary()


def _rows(samples: Samples, tokens: int) -> list[Json]:
    medians = {name: median(seconds(kept)) for name, kept in samples.items()}
    return [
        {
            "lever": name,
            "seconds": seconds(kept),
            "tokens_per_second": tokens / medians[name],
            "ratio": medians[BASE] / medians[name],
        }
        for name, kept in samples.items()
    ]


def _pair_rows(samples: Samples) -> list[Json]:
    p50 = {name: percentile(seconds(kept), 50) for name, kept in samples.items()}
    return [
        {
            "lever": name,
            "p50_milliseconds": p50[name] * 1e3,
            "p90_milliseconds": percentile(seconds(kept), 90) * 1e3,
            "ratio": p50[BASE] / p50[name],
        }
        for name, kept in samples.items()
    ]


def _turns(
    actions: Mapping[str, Callable[[int], None]],
    rounds: int,
    warm_up: int,
    skipped: dict[str, str],
    after_round: Callable[[Samples], None] = discard,
) -> Samples:
    """Each called in turn; one that fails is left out with its reason, and the rest goes on."""
    good = {}
    for name, action in actions.items():
        started = time.perf_counter()
        try:
            for number in range(warm_up):
                action(number)
            good[name] = action
        except Exception as error:
            if name == BASE:
                raise
            skipped[name] = _reason(error)
        log(f"levers: {name}: warm after {time.perf_counter() - started:.1f} s")
    return interleaved(good, rounds, warm_up=0, after_round=after_round)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _many(lever: Lever, embedder: Embedder, documents: list[str], tokens: Tokens) -> Callable[[int], None]:
    def run(_: int) -> None:
        with lever.switch(embedder):
            if lever.ready == "none":
                embedder.embed_documents(documents, progress=False)
            else:
                known = tokens if lever.ready == "not measured" else embedder.tokenize([], documents, "")
                embedder.embed_tokens(known)

    return run


def _pair(lever: Lever, embedder: Embedder, pairs: list[list[list[int]]]) -> Callable[[int], None]:
    def run(number: int) -> None:
        with lever.switch(embedder):
            embedder.forward(pairs[number % len(pairs)]).cpu()

    return run


def card(result: Json) -> str:
    many = [[row["lever"], f"{row['tokens_per_second']:,.0f}", f"{row['ratio']:.3f}"] for row in result["levers"]]
    pair = [
        [row["lever"], f"{row['p50_milliseconds']:.3f}", f"{row['p90_milliseconds']:.3f}", f"{row['ratio']:.3f}"]
        for row in result["pair_levers"]
    ]
    return "\n".join(
        [
            f"Levers: {result['texts']:,} documents, {result['tokens']:,} tokens in {result['dtype']}, batches of "
            f"{result['batch_tokens']:,} tokens; interleaved rounds: {result['rounds']}; medians",
            table(["", "tokens/s", f"÷ {BASE}"], many),
            f"  One query and one document, token ids to vectors on the host, {result['pairs']} calls each:",
            table(["", "p50 ms", "p90 ms", f"speed ÷ {BASE}"], pair),
            *(f"  {name}: not measured, {reason}" for name, reason in result["skipped"].items()),
        ]
    )
