"""Servers of TEI's, OpenAI's and Cog's API on a function that embeds texts, for `http_stand_in.serving`."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.evaluation.http_stand_in import Request, Response
from tests.reference import Vectors

Embed = Callable[[Sequence[str]], Vectors]
"""Whole texts → float32 [N, D], not normalized."""
EmbedSide = Callable[[str, Sequence[str], str], Vectors]
"""Side, texts, task → float32 [N, D], not normalized."""


def normalized(vectors: Vectors) -> Vectors:
    result: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


def tei(embed: Embed) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        if (request.method, request.path) != ("POST", "/embed"):
            return Response(404, {"error": "not found", "error_type": "NotFound"})
        texts = request.body["inputs"]
        if not all(text.strip() for text in texts):
            return Response(422, {"error": "`inputs` cannot be empty", "error_type": "Validation"})
        vectors = embed(texts)
        return Response(200, (normalized(vectors) if request.body["normalize"] else vectors).tolist())

    return answer


def openai(embed: Embed, rounded: Callable[[Vectors], Any] = np.asarray) -> Callable[[Request], Response]:
    """Vectors of length 1, as OpenAI's, then rounded."""

    def answer(request: Request) -> Response:
        if (request.method, request.path) == ("GET", "/v1/models"):
            return Response(200, {"data": [{"id": "any", "object": "model", "owned_by": "vllm"}]})
        if (request.method, request.path) != ("POST", "/v1/embeddings"):
            return Response(404, {"detail": "Not Found"})
        texts = request.body["input"]
        if not all(text.strip() for text in texts):
            return Response(400, {"error": {"message": "input is empty", "type": "invalid_request_error"}})
        rows = rounded(normalized(embed(texts))).tolist()
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        tokens = sum(len(text.split()) for text in texts)
        return Response(200, {"data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})

    return answer


def cog(embed: EmbedSide) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        if (request.method, request.path) != ("POST", "/predictions"):
            return Response(404, {"detail": "Not Found"})
        inputs = request.body["input"]
        side = "query" if "queries" in inputs else "document"
        texts = inputs["queries" if side == "query" else "documents"]
        if not all(text.strip() for text in texts):
            return Response(200, {"status": "failed", "error": "InputError: `documents[0]` is empty"})
        vectors = embed(side, texts, inputs.get("task", ""))
        vectors = normalized(vectors) if inputs["normalize"] else vectors
        encoded = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
        output = {"embeddings": None, "embeddings_base64": encoded}
        return Response(200, {"status": "succeeded", "output": output, "metrics": {}})

    return answer
