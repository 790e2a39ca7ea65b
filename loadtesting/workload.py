"""The load test's requests, drawn with a seed, and the vectors that their replies are compared with."""

import random
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from benchmarks.texts import RandomTexts
from e5.embedder import Embedder
from e5.vectors import Vectors
from loadtesting.cog_client import Json

MEDIAN_TOKENS, SIGMA, LONGEST_TOKENS = 50, 1.1, 4000
"""Lengths are log-normal, from 1 to 4,000 tokens."""
PREDICTIONS_PER_TEXT = 3
"""Texts repeat, so that equal ones meet in the queue."""

Kind = Literal["valid", "invalid", "cancel", "hang up", "twice"]
TOO_LONG: Json = {"document": "x" * 1_000_001}
INVALID: tuple[tuple[Json, int, str], ...] = (
    ({}, 200, "there is no text"),
    ({"query": " "}, 200, "`query` is only white space"),
    ({"documents": ["fine", ""]}, 200, "`documents[1]` is empty"),
    (TOO_LONG, 200, "more than the 1,000,000 of E5_MAX_CHARACTERS"),
    ({"query": 5}, 422, 'not of type \\"string\\"'),
    ({"query": "a", "encoding_format": "hex"}, 422, "is not one of"),
)
"""Inputs, and the HTTP status and message of their refusal."""


@dataclass(frozen=True)
class Pool:
    """Texts, and the vectors of each embedded on its own as a query and as a document: float32 [N, D] each."""

    texts: list[str]
    queries: Vectors
    documents: Vectors
    tolerance: float

    @classmethod
    def make(cls, embedder: Embedder, random_texts: RandomTexts, count: int, tolerance: float) -> Self:
        """Draw `count` texts of 1 to 4,000 tokens, including one of each extreme length, and embed them."""
        generator = np.random.default_rng(1)
        lengths = generator.lognormal(np.log(MEDIAN_TOKENS), SIGMA, count).round().clip(1, LONGEST_TOKENS).astype(int)
        lengths[:2] = 1, LONGEST_TOKENS
        texts = random_texts.of_words(lengths.tolist())
        queries = np.concatenate([embedder.embed_queries([text]) for text in texts])
        documents = np.concatenate([embedder.embed_documents([text]) for text in texts])
        return cls(texts, queries, documents, tolerance)


@dataclass(frozen=True)
class StormRequest:
    """One prediction: its inputs, the pool's rows that they hold, and the expected response if it is invalid.

    `wait`: seconds before it is cancelled, hung up on, or sent for the second time.
    """

    kind: Kind
    queries: list[int]
    documents: list[int]
    inputs: Json
    wait: float
    http_status: int = 200
    message: str = ""


def draw_requests(pool: Pool, count: int, seed: int) -> list[StormRequest]:
    """Draw `count` requests: 1 % invalid, 1 % cancelled or hung up on, 2 % sent twice, the others valid."""
    generator = random.Random(seed)
    return [_draw_request(pool, generator, number) for number in range(count)]


def _draw_request(pool: Pool, generator: random.Random, number: int) -> StormRequest:
    kinds: dict[int, Kind] = {
        17: "invalid",
        42: "cancel" if number % 200 < 100 else "hang up",
        60: "twice",
        90: "twice",
    }
    kind = kinds.get(number % 100, "valid")
    wait = generator.uniform(0, 0.1)
    if kind == "invalid":
        inputs, status, message = INVALID[number // 100 % len(INVALID)]
        return StormRequest(kind, [], [], inputs, wait, status, message)
    counts = generator.choice(((1, 0), (0, 1), (1, 1), (1, 1), (0, 3), (1, 2)))
    queries, documents = ([generator.randrange(len(pool.texts)) for _ in range(count)] for count in counts)
    inputs = {"encoding_format": generator.choice(("float", "base64"))}
    inputs |= _text_inputs("query", "queries", [pool.texts[row] for row in queries])
    inputs |= _text_inputs("document", "documents", [pool.texts[row] for row in documents])
    return StormRequest(kind, queries, documents, inputs, wait)


def _text_inputs(singular: str, plural: str, texts: list[str]) -> Json:
    if not texts:
        return {}
    return {singular: texts[0]} if len(texts) == 1 else {plural: texts}
