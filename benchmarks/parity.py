"""Parity: the engine's vectors against float32 reference code on the same weights, and against its own other modes.

The reference is the stock transformers module with eager attention, one text at a time, in float32 without TF32. The
same code in each 16-bit dtype shows the error of the dtype itself. For base and adapter, the merge is also compared bit
for bit with peft's in float64 on the CPU, rounded to the dtype.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import merge_parity, quality, variants
from benchmarks.agreement import distance
from benchmarks.reference import ModelUnderTest, exact_float32, stock_vectors
from benchmarks.report import Json, Keep, cells, discard, first_line, log, table
from benchmarks.texts import RandomTexts
from benchmarks.timing import free
from e5 import catalog
from e5.embedder import Embedder
from e5.settings import Settings
from e5.tokens import TokenIds, Tokens
from e5.vectors import Vectors

TEXTS, QUICK_TEXTS = 40, 8
QUICK_TOKENS = 300
REFERENCE = "float32 reference code"
SIXTEEN_BIT = ("float16", "bfloat16")


def measure(
    subject: ModelUnderTest,
    dtypes: Sequence[str] | None,
    data: Path | None,
    quick: bool,
    seed: int,
    keep: Keep = discard,
) -> Json:
    """A comparison that fails becomes a row with its error; the others still run.

    `data`: folder with trecqa-dev.csv and stsb-en-dev.csv, for the quality in each dtype; None leaves it out.
    """
    all_dtypes = ["float32", *SIXTEEN_BIT, *([variants.FLOAT8] if variants.has_float8(subject.model) else [])]
    names = list(dtypes or all_dtypes)
    ids, texts = _draw_texts(subject, quick, seed)
    result: Json = {
        "device": str(subject.device),
        "texts": len(ids),
        "tokens": sum(map(len, ids)),
        "shortest_tokens": min(map(len, ids)),
        "longest_tokens": max(map(len, ids)),
        "rows": [],
        "merge": [],
        "quality": [],
    }

    def add(part: str, dtype: str, compare: Callable[[], list[Json]]) -> None:
        log(f"parity: {part} in {dtype} …")
        try:
            result[part] += compare()
        except Exception as error:
            result[part].append({"dtype": dtype, "failed": first_line(error)})
            log(f"parity: {result[part][-1]}")
        keep(result)
        free(subject.device)

    log(f"parity: {REFERENCE}, {len(ids)} texts, {result['tokens']} tokens …")
    with exact_float32():
        reference = stock_vectors(subject, torch.float32, ids)
    for dtype in names:
        if dtype in SIXTEEN_BIT:
            add("rows", dtype, partial(_stock_rows, subject, dtype, ids, reference))
        add("rows", dtype, partial(_engine_rows, subject, dtype, ids, reference))
    if subject.weights.adapter is not None:
        for dtype in names:
            if dtype in SIXTEEN_BIT:
                add("merge", dtype, partial(merge_parity.compare, subject, dtype, texts))
    if data is not None:
        for dtype in all_dtypes:
            add("quality", dtype, partial(_quality_rows, subject, dtype, data))
    return result


def _draw_texts(subject: ModelUnderTest, quick: bool, seed: int) -> tuple[list[TokenIds], list[str]]:
    """Token IDs and texts of mixed lengths, from a single word to the model's token limit."""
    embedder = subject.load("float32" if subject.device.type == "cpu" else "float16")
    random_texts = RandomTexts(embedder, subject.weights.tokenizer, seed)
    limit = embedder.tokenizer.max_tokens
    longest = min(QUICK_TOKENS, limit) if quick else limit
    texts = random_texts.of_words([1, 2, 3, longest + 9])
    texts += random_texts.mixed((QUICK_TEXTS if quick else TEXTS) - 4)
    ids = [text_ids[:longest] for text_ids in embedder.tokenize([], texts, "").ids]
    del random_texts, embedder
    free(subject.device)
    return ids, texts


def _stock_rows(subject: ModelUnderTest, dtype: str, ids: Sequence[TokenIds], reference: Vectors) -> list[Json]:
    vectors = stock_vectors(subject, getattr(torch, dtype), ids)
    return [_row(dtype, "stock transformers", REFERENCE, vectors, reference)]


def _engine_rows(subject: ModelUnderTest, dtype: str, ids: Sequence[TokenIds], reference: Vectors) -> list[Json]:
    """Engine against reference, packed against one by one, graphs against eager, kernels against torch's operators."""
    embedder = subject.load(dtype)

    def embed_packed() -> Vectors:
        return embedder.embed_tokens(Tokens(list(ids), list(map(len, ids))))

    def embed_one_by_one() -> Vectors:
        return np.concatenate([embedder.forward([text_ids]).cpu().numpy() for text_ids in ids])

    with exact_float32():
        packed, one_by_one = embed_packed(), embed_one_by_one()
        rows = [
            _row(dtype, "engine", REFERENCE, packed, reference),
            _row(dtype, "packed", "one by one", packed, one_by_one),
        ]
        if variants.graphs(embedder) is not None:
            with variants.without_graphs(embedder):
                rows += [
                    _row(dtype, "graphs, packed", "eager", packed, embed_packed()),
                    _row(dtype, "graphs, one by one", "eager", one_by_one, embed_one_by_one()),
                ]
        if "kernels" not in variants.missing(embedder):
            with variants.without_kernels(embedder):
                rows.append(_row(dtype, "kernels", "torch's operators", packed, embed_packed()))
    return rows


def _row(dtype: str, of: str, to: str, vectors: Vectors, reference: Vectors) -> Json:
    return {"dtype": dtype, "of": of, "to": to, **distance(vectors, reference).facts()}


def _quality_rows(subject: ModelUnderTest, dtype: str, data: Path) -> list[Json]:
    """Quality of the embedded model, whichever model is under test: vectors of random weights mean nothing."""
    embedder = Embedder.from_settings(Settings(catalog.EMBEDDED, device=str(subject.device), dtype=dtype))
    return [{"dtype": dtype, **quality.quality(embedder, data)}]


def card(result: Json) -> str:
    formats = "{dtype}|{of}|{to}|{max_relative_l2:.1e}|{median_relative_l2:.1e}|{min_centred_cosine:.6f}"
    formats += "|{max_score_difference:.4f}|{identical}"
    rows = cells([row for row in result["rows"] if "failed" not in row], formats)
    head = ["dtype", "", "against", "max rel. L2", "median", "min c. cosine", "max |Δ score|", "same bits"]
    lines = [
        f"Parity: {result['texts']} texts of {result['shortest_tokens']} to {result['longest_tokens']:,} tokens on "
        f"{result['device']}",
        table(head, rows, text_columns=3),
        "  c. cosine: after subtracting the reference's mean from both. Score: 100 × cosine of any two of the texts.",
    ]
    lines += [
        f"  Merged on {result['device']} against peft in float64 on the CPU, rounded to {row['dtype']}: "
        f"{row['different_weights']:,} of {row['weights']:,} weights differ; vectors of engines loaded from each: "
        + ("the same bits" if row["vectors"]["identical"] else f"relative L2 {row['vectors']['max_relative_l2']:.1e}")
        for row in result["merge"]
        if "failed" not in row
    ]
    if result["quality"]:
        lines.append("  Quality of the embedded model on labelled texts:")
        scored = [row for row in result["quality"] if "failed" not in row]
        figures = cells(scored, "{dtype}|{trecqa_mrr:.2f}|{stsb_spearman:.2f}")
        lines.append(table(["dtype", "TrecQA dev MRR", "STS-B dev Spearman"], figures))
    failed = [row for part in ("rows", "merge", "quality") for row in result[part] if "failed" in row]
    lines += [f"  {row['dtype']}: failed, {row['failed']}" for row in failed]
    return "\n".join(lines)
