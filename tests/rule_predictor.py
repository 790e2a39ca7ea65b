"""A predictor without a model, for gateway tests with the real Cog server. It starts in a second.

A text's vector is (characters, words, 0, 1). Some words in a text change the prediction:

| word | effect |
|---|---|
| sleep 0.5 | takes half a second |
| fail | raises InputError |
| break | raises RuntimeError |
| die | ends the worker process |

It reads eight words of a text; its tokens are the words. It returns a file as it came, with its lines as texts.
"""

import asyncio
import base64
import math
import operator
import os
import re
import shutil
import struct
import tempfile

import cog
from cog import BaseModel, BasePredictor, Input, Path

from e5.errors import InputError
from e5_cog.repository import ROOT

MODEL = "rule"
MAX_TOKENS = 8
RULE = {"COG_PREDICT_TYPE_STUB": "tests/rule_predictor.py:Predictor", "PYTHONPATH": str(ROOT)}
"""Environment with which scripts/serve.py serves this predictor."""


class Output(BaseModel):  # type: ignore[misc]
    """The same as in predict.py."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None
    scales: list[float] | None
    score: float | None
    scores: list[list[float]] | None
    tokens: list[int]
    truncated: list[int]
    token_ids: list[list[int]] | None
    pieces: list[list[str]] | None
    file: Path | None


def vector(text: str) -> list[float]:
    """The vector of a text."""
    return [float(len(text)), float(len(text.split())), 0.0, 1.0]


def score(query: str, document: str) -> float:
    """100 × cosine of two texts' vectors."""
    a, b = vector(query), vector(document)
    product: float = sum(map(operator.mul, a, b))
    return 100 * product / (math.hypot(*a) * math.hypot(*b))


class Predictor(BasePredictor):  # type: ignore[misc]
    """Takes the inputs of predict.py."""

    async def setup(self) -> None:
        """RULE_SETUP_SECONDS: duration of the setup. RULE_MODEL, RULE_DTYPE: model and dtype in the metrics.

        RULE_LAST: the vectors' last number, like other weights.
        """
        await asyncio.sleep(float(os.environ.get("RULE_SETUP_SECONDS", "0")))

    @cog.concurrent(max=128)  # type: ignore[untyped-decorator]
    async def predict(
        self,
        task: str = Input(default=""),
        query: str | None = Input(default=None),
        document: str | None = Input(default=None),
        normalize: bool = Input(default=False),
        queries: list[str] | None = Input(default=None),
        documents: list[str] | None = Input(default=None),
        encoding_format: str = Input(
            default="float", choices=["float", "base64", "float16", "int8", "ubinary", "tokens"]
        ),
        long_texts: str = Input(default="truncate", choices=["truncate", "error", "average"]),
        file: Path | None = Input(default=None),
    ) -> Output:
        """Compute the vectors, or the effect of a word in the texts."""
        lines = file.read_text().splitlines() if file else []
        optional = [query, *(queries or []), document, *(documents or []), *lines]
        texts = [text for text in optional if text is not None]
        for text in texts:
            if pause := re.search(r"sleep ([\d.]+)", text):
                await asyncio.sleep(float(pause[1]))
            if "fail" in text:
                raise InputError("`documents[0]` is refused: pass another")
            if "break" in text:
                raise RuntimeError("broken")
            if "die" in text:
                os._exit(1)
        words = [text.split() for text in texts]
        long = [index for index, each in enumerate(words) if len(each) > MAX_TOKENS]
        if long and long_texts == "error":
            raise InputError(f"text {long[0] + 1} has {len(words[long[0]])} tokens, more than {MAX_TOKENS}")
        self.record_metric("model", os.environ.get("RULE_MODEL", MODEL))
        self.record_metric("dtype", os.environ.get("RULE_DTYPE", "float32"))
        self.record_metric("max_tokens", MAX_TOKENS)
        self.record_metric("texts", len(texts))
        self.record_metric("input_tokens", sum(map(len, words)))
        last = float(os.environ.get("RULE_LAST", "1"))
        vectors = [[*vector(text)[:3], last] for text in texts]
        encoded = [base64.b64encode(struct.pack("<4f", *values)).decode() for values in vectors]
        first = texts[: len(texts) - len(documents or []) - (document is not None)]
        scores = [[score(one, other) for other in texts[len(first) :]] for one in first]
        return Output(
            embeddings=vectors if encoding_format == "float" else None,
            embeddings_base64=encoded if encoding_format not in ("float", "tokens") else None,
            scales=None,
            score=scores[0][0] if len(first) == 1 and len(texts) == 2 else None,
            scores=scores if first and len(first) < len(texts) else None,
            tokens=[len(each) for each in words],
            truncated=long if long_texts == "truncate" else [],
            token_ids=[[len(word) for word in each] for each in words] if encoding_format == "tokens" else None,
            pieces=words if encoding_format == "tokens" else None,
            file=file and Path(shutil.copy(file, f"{tempfile.mkdtemp()}/copy.txt")),
        )
