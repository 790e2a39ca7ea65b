"""Size and retrieval quality of smaller vectors, with the documents' mean subtracted, and with a second pass.

    .venv/bin/python -m benchmarks.smaller_vectors --data data --model multilingual-e5-small

Quality is nDCG@10 × 100 on a TrecQA table: the questions that have an answer search all sentences of the table, by
cosine. Speed is that of encoding an answer, without the model. It runs no database. For other tasks, see
`scripts/evaluate.py --vectors`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

import e5
from benchmarks.quality import RETRIEVAL, RETRIEVAL_TASK, Candidate, read_candidates
from benchmarks.report import median, table
from e5 import tasks
from e5.embedder import Embedder
from e5.serving import serialize
from e5.serving.request import EmbedRequest, EncodingFormat
from e5.serving.service import encode
from e5.tokens import Tokens
from e5.vectors import Vectors, to_int8
from evaluation.compress import COMPRESSIONS

DIMENSIONS = (384, 1024, 4096)
CANDIDATES = 100
"""Documents of the first pass that the second pass scores again."""
SAMPLE = 100
"""Documents for an estimate of the mean."""
SHARED = 0.95
ANSWER = 256, 1024
"""Vectors of the answer whose encoding is timed, and their dimensions."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    questions, sentences, answers = collect(read_candidates(arguments.data / arguments.texts))
    embedder = Embedder.load(arguments.model, arguments.weights, dtype="float32")
    queries = embedder.embed_queries(questions, task=tasks.instruction(RETRIEVAL_TASK), normalize=True)
    documents = embedder.embed_documents(sentences, normalize=True)
    print("Bytes of a vector of random numbers; base64: the number of characters")
    print(table(["", *(f"{count:,} dimensions" for count in DIMENSIONS)], _size_rows()))
    print(f"\nTime to encode an answer of {ANSWER[0]} vectors of {ANSWER[1]:,} numbers, relative to float")
    print(table(["", "ratio of medians"], encoding_ratios(rounds=15)))
    mean = documents.mean(axis=0)
    positive = (documents > 0).mean(axis=0)
    shared = np.mean(np.maximum(positive, 1 - positive) >= SHARED)
    print(f"\n{embedder.model.name}, {arguments.texts}: {len(questions)} questions, {len(sentences)} sentences")
    print(f"Length of the mean {np.linalg.norm(mean):.2f}")
    print(f"In {shared:.0%} of the dimensions, {SHARED:.0%} of the vectors have the same sign")
    few = documents[:: max(1, len(documents) // SAMPLE)].mean(axis=0)
    columns = [search(queries - shift, documents - shift) for shift in (np.zeros_like(mean), mean, few)]
    rows = [[name, *(f"{ndcg(scores[name], answers):.2f}" for scores in columns)] for name in columns[0]]
    print(table(["nDCG@10", "unchanged", "minus mean", f"minus mean of {SAMPLE}"], rows))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smaller_vectors")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with the table")
    parser.add_argument("--texts", default=RETRIEVAL, metavar="NAME.csv", help="qtext, label, atext (%(default)s)")
    parser.add_argument("--model", metavar="NAME", help="default: the embedded model")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="the model's files (default: found or fetched)")
    return parser.parse_args(argv)


def _size_rows() -> list[list[str]]:
    rows = [["float, JSON", *(f"{json_bytes(count):,}" for count in DIMENSIONS)]]
    for name, bits, extra in (("float32", 32, 0), ("float16", 16, 0), ("int8 and scale", 8, 4), ("ubinary", 1, 0)):
        sizes = [count * bits // 8 for count in DIMENSIONS]
        rows.append([name, *(f"{size + extra:,}" for size in sizes)])
        rows.append([f"  base64{', without scale' if extra else ''}", *(f"{4 * -(-size // 3):,}" for size in sizes)])
    return rows


def json_bytes(dimensions: int) -> int:
    """The mean size of a unit vector in an answer with lists of numbers."""
    vectors = np.random.default_rng(0).standard_normal((20, dimensions), dtype=np.float32)
    return round(
        len(json.dumps(serialize.json_numbers(e5.normalize(vectors)).tolist(), separators=(",", ":"))) / len(vectors)
    )


def encoding_ratios(rounds: int) -> list[list[str]]:
    """Times of encoding a normalized answer and writing it as JSON, interleaved, as ratios of medians."""
    count, dimensions = ANSWER
    vectors = np.random.default_rng(0).standard_normal((count, dimensions), dtype=np.float32)
    tokens = Tokens([np.zeros(2, np.int32)] * count, [2] * count)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in get_args(EncodingFormat)[:-1]:  # all but the tokens
            request = EmbedRequest([], ["a"] * count, "", normalize=True, encoding_format=name)
            started = time.perf_counter()
            json.dumps(vars(encode(vectors, tokens, request)), default=lambda array: array.tolist())
            seconds.setdefault(name, []).append(time.perf_counter() - started)
    return [[name, f"{median(times) / median(seconds['float']):.3f}"] for name, times in seconds.items()]


def collect(candidates: Sequence[Candidate]) -> tuple[list[str], list[str], list[set[int]]]:
    """The questions that have an answer, the distinct sentences, and which of them answer each question."""
    sentences = {text: index for index, text in enumerate(dict.fromkeys(row.sentence for row in candidates))}
    answers: dict[str, set[int]] = {}
    for row in candidates:
        if row.is_answer:
            answers.setdefault(row.question, set()).add(sentences[row.sentence])
    return list(answers), list(sentences), list(answers.values())


def search(queries: Vectors, documents: Vectors) -> dict[str, Vectors]:
    """The scores [Q, N] of each way to search."""
    scores = {name: e5.scores(compress(queries), compress(documents)) for name, compress in COMPRESSIONS.items()}
    scores["int8 without scales, dot product"] = queries @ to_int8(documents)[0].astype(np.float32).T
    signs = e5.scores(queries, COMPRESSIONS["ubinary"](documents))
    for name, second in (("query · signs", signs), ("int8", scores["int8"])):
        scores[f"ubinary, best {CANDIDATES} again by {name}"] = rescored(scores["ubinary"], second, CANDIDATES)
    return scores


def rescored(first: Vectors, second: Vectors, count: int) -> Vectors:
    """The second scores of the `count` candidates that are best in the first; -inf for all others."""
    best = np.argsort(-first, axis=1, kind="stable")[:, :count]
    scores: Vectors = np.full_like(first, -np.inf)
    np.put_along_axis(scores, best, np.take_along_axis(second, best, axis=1), axis=1)
    return scores


def ndcg(scores: Vectors, answers: Sequence[set[int]], depth: int = 10) -> float:
    """The mean nDCG × 100 of the first `depth` documents. Equal scores stay in the documents' order."""
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    values = []
    for row, relevant in zip(scores, answers, strict=True):
        hits = np.isin(np.argsort(-row, kind="stable")[:depth], list(relevant))
        values.append(discounts[: len(hits)][hits].sum() / discounts[: len(relevant)].sum())
    return 100 * float(np.mean(values))


if __name__ == "__main__":
    main()
