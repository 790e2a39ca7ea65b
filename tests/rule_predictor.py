"""A predictor without a model, which starts in a second: for tests of what stands in front of the real Cog server.

A text's vector is (length, number of words, 0, 1). Words in any text make the prediction do something else:

| words | |
|---|---|
| sleep 0.5 | takes half a second |
| fail | raises InputError |
| break | raises another error |
| die | ends the process that predicts |
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
"""What makes scripts/serve.py serve it."""


class Output(BaseModel):  # type: ignore[misc]
    """As predict.py's."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None
    score: float | None
    scores: list[list[float]] | None


def vector(text: str) -> list[float]:
    """The rule."""
    return [float(len(text)), float(len(text.split())), 0.0, 1.0]


class Predictor(BasePredictor):  # type: ignore[misc]
    """The inputs of predict.py."""

    async def setup(self) -> None:
        """`RULE_SETUP_SECONDS` says how long it takes, `RULE_MODEL` what it calls itself."""
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
        """Follow the rule."""
        texts = [query, *(queries or []), document, *(documents or [])]
        given = [text for text in texts if text is not None]
        for text in given:
            if pause := re.search(r"sleep ([\d.]+)", text):
                await asyncio.sleep(float(pause[1]))
            if "fail" in text:
                raise InputError("`documents[0]` is refused: pass another")
            if "break" in text:
                raise RuntimeError("broken")
            if "die" in text:
                os._exit(1)
        self.record_metric("model", os.environ.get("RULE_MODEL", MODEL))
        self.record_metric("texts", len(given))
        self.record_metric("input_tokens", sum(len(text.split()) for text in given))
        vectors = [vector(text) for text in given]
        packed = [base64.b64encode(struct.pack("<4f", *one)).decode() for one in vectors]
        return Output(
            embeddings=None if encoding_format == "base64" else vectors,
            embeddings_base64=packed if encoding_format == "base64" else None,
            score=None,
            scores=None,
        )
