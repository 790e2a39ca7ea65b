"""A predictor without a model, for gateway tests with the real Cog server. It starts in a second.

A text's vector is (characters, words, 0, 1). Some words in a text change the prediction:

| word | effect |
|---|---|
| sleep 0.5 | takes half a second |
| fail | raises InputError |
| break | raises RuntimeError |
| die | ends the worker process |
"""

import asyncio
import base64
import os
import re
import struct

import cog
from cog import BaseModel, BasePredictor, Input

from e5.errors import InputError
from e5_cog.repository import ROOT

MODEL = "rule"
RULE = {"COG_PREDICT_TYPE_STUB": "tests/rule_predictor.py:Predictor", "PYTHONPATH": str(ROOT)}
"""Environment with which scripts/serve.py serves this predictor."""


class Output(BaseModel):  # type: ignore[misc]
    """The same as in predict.py."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None
    score: float | None
    scores: list[list[float]] | None


def vector(text: str) -> list[float]:
    """The vector of a text."""
    return [float(len(text)), float(len(text.split())), 0.0, 1.0]


class Predictor(BasePredictor):  # type: ignore[misc]
    """Takes the inputs of predict.py."""

    async def setup(self) -> None:
        """RULE_SETUP_SECONDS: duration of the setup. RULE_MODEL: the model's name in the metrics."""
        await asyncio.sleep(float(os.environ.get("RULE_SETUP_SECONDS", "0")))

    @cog.concurrent(max=64)  # type: ignore[untyped-decorator]
    async def predict(
        self,
        task: str = Input(default=""),
        query: str | None = Input(default=None),
        document: str | None = Input(default=None),
        normalize: bool = Input(default=False),
        queries: list[str] | None = Input(default=None),
        documents: list[str] | None = Input(default=None),
        encoding_format: str = Input(default="float", choices=["float", "base64"]),
    ) -> Output:
        """Compute the vectors, or the effect of a word in the texts."""
        optional = [query, *(queries or []), document, *(documents or [])]
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
        self.record_metric("model", os.environ.get("RULE_MODEL", MODEL))
        self.record_metric("texts", len(texts))
        self.record_metric("input_tokens", sum(len(text.split()) for text in texts))
        vectors = [vector(text) for text in texts]
        encoded = [base64.b64encode(struct.pack("<4f", *values)).decode() for values in vectors]
        return Output(
            embeddings=None if encoding_format == "base64" else vectors,
            embeddings_base64=encoded if encoding_format == "base64" else None,
            score=None,
            scores=None,
        )
