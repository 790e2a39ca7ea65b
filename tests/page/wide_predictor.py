"""A predictor without a model. Its predict() has inputs of every kind, which predict.py has not."""

import cog
from cog import BaseModel, BasePredictor, Input, Path


class Output(BaseModel):  # type: ignore[misc]
    """Those of predict.py that the page needs, and the new inputs as they arrived."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None
    scores: list[list[float]] | None
    tokens: list[int]
    truncated: list[int]
    arrived: list[str]


class Predictor(BasePredictor):  # type: ignore[misc]
    """Serves the vector (characters, 1) of each text."""

    @cog.concurrent(max=128)  # type: ignore[untyped-decorator]
    async def predict(
        self,
        query: str | None = Input(description="A query.", default=None),
        document: str | None = Input(description="A document.", default=None),
        queries: list[str] | None = Input(description="More queries.", default=None),
        documents: list[str] | None = Input(description="More documents.", default=None),
        layer: int = Input(description="Which layer's output.", default=3),
        weight: float | None = Input(description="Of the layer.", default=None),
        reverse: bool = Input(description="Read from the end.", default=True),
        pooling: str = Input(description="How tokens become one vector.", default="last", choices=["last", "mean"]),
        note: str | None = Input(description="Ignored.", default=None),
        labels: list[str] | None = Input(description="Names of the layers.", default=None),
        factors: list[float] | None = Input(description="One for each token.", default=None),
        sample: Path | None = Input(description="Not a file of texts.", default=None),
        encoding_format: str = Input(description="As in predict.py.", default="float", choices=["float", "base64"]),
    ) -> Output:
        """Repeat the new inputs."""
        first = [*([] if query is None else [query]), *(queries or [])]
        second = [*([] if document is None else [document]), *(documents or [])]
        texts = first + second
        content = sample and sample.read_bytes()
        self.record_metric("model", "wide")
        self.record_metric("dtype", "float32")
        self.record_metric("max_tokens", 8)
        self.record_metric("input_tokens", len(texts))
        return Output(
            embeddings=[[float(len(text)), 1.0] for text in texts],
            embeddings_base64=["AACAPwAAgD8="] * len(texts) if encoding_format == "base64" else None,
            scores=[[50.0] * len(second)] * len(first) if first and second else None,
            tokens=[1] * len(texts),
            truncated=[],
            arrived=[repr(value) for value in (layer, weight, reverse, pooling, note, labels, factors, content)],
        )
