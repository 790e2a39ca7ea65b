"""The texts and options of one request, checked before anything is computed. Does not import torch."""

from dataclasses import dataclass
from typing import Self

from e5.errors import InputError
from e5.inputs import check_task, gather
from e5.limits import Limits


@dataclass(frozen=True)
class EmbedRequest:
    """Checked texts. `task` applies to the queries, `normalize` and `base64` to the returned vectors."""

    queries: list[str]
    documents: list[str]
    task: str
    normalize: bool = False
    base64: bool = False

    @classmethod
    def from_inputs(
        cls,
        limits: Limits,
        task: str,
        query: str | None,
        document: str | None,
        normalize: bool,
        queries: list[str] | None,
        documents: list[str] | None,
        encoding_format: str,
    ) -> Self:
        """Check the inputs of predict.py, and put each single text before its list. Raises InputError."""
        request = cls(
            gather("query", query, "queries", queries, limits.characters),
            gather("document", document, "documents", documents, limits.characters),
            check_task(task, limits.characters),
            normalize,
            encoding_format == "base64",
        )
        if not request.texts:
            raise InputError("there is no text: pass at least one of `query`, `document`, `queries`, `documents`")
        limits.check_texts(request.texts, repeated=len(task) * len(request.queries))
        return request

    @property
    def texts(self) -> list[str]:
        """All queries, then all documents: the order of the vectors."""
        return self.queries + self.documents

    @property
    def characters(self) -> int:
        """Characters to tokenize: each query is prompted with the task."""
        return sum(map(len, self.texts)) + len(self.task) * len(self.queries)
