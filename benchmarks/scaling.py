"""Scaling: checks that the time per token stays constant as the number of texts grows."""

from collections.abc import Callable

from benchmarks.report import Json, cells, interleaved, log, median, seconds, table
from benchmarks.texts import RandomTexts
from e5.embedder import Embedder
from e5.vectors import Vectors

SIZES, QUICK_SIZES = (1_000, 10_000, 100_000), (300, 1_000, 3_000)


def measure(embedder: Embedder, texts: RandomTexts, sizes: tuple[int, ...], rounds: int) -> Json:
    """Embed short documents, tokenizing included: the largest list once, smaller lists up to `rounds` times."""
    documents = texts.short(max(sizes))
    embedder.embed_documents(documents[: min(sizes)], progress=False)
    rows = []
    for size in sizes:
        log(f"scaling: {size} texts …")
        part = documents[:size]
        tokens = embedder.tokenize([], part, "").total
        repeats = max(1, min(rounds, max(sizes) // size))
        samples = interleaved({size: _embed(embedder, part)}, repeats, warm_up=0)
        median_seconds = median(seconds(samples[size]))
        rows.append(
            {
                "texts": size,
                "tokens": tokens,
                "rounds": repeats,
                "median_seconds": median_seconds,
                "microseconds_per_token": median_seconds / tokens * 1e6,
            }
        )
    growth = rows[-1]["microseconds_per_token"] / rows[0]["microseconds_per_token"]
    return {"dtype": embedder.dtype, "sizes": rows, "largest_to_smallest_ratio": growth}


def _embed(embedder: Embedder, documents: list[str]) -> Callable[[int], Vectors]:
    return lambda _: embedder.embed_documents(documents, progress=False)


def card(result: Json) -> str:
    formats = "{texts:,}|{tokens:,}|{rounds}|{median_seconds:.3f}|{microseconds_per_token:.2f}"
    rows = cells(result["sizes"], formats)
    return "\n".join(
        [
            f"Scaling: short documents in {result['dtype']}, tokenizing included",
            table(["texts", "tokens", "rounds", "median s", "µs/token"], rows, text_columns=0),
            f"  µs/token of the largest list / the smallest  {result['largest_to_smallest_ratio']:.2f}",
        ]
    )
