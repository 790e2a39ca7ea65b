"""The texts and options of one request, checked before anything is computed. Does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast, get_args

from e5.errors import InputError
from e5.inputs import LongTexts, check_long_texts, check_task, gather
from e5.limits import Limits

EncodingFormat = Literal["float", "base64", "float16", "int8", "ubinary", "tokens"]
"""How vectors are returned: as numbers, or as base64 of float32, float16, int8 or sign bits. `tokens`: no vectors, but
the tokens that the model would read."""
FILE_VECTORS: dict[str, Literal["float32", "float16", "int8", "ubinary"]] = {
    "float": "float32",
    "base64": "float32",
    "float16": "float16",
    "int8": "int8",
    "ubinary": "ubinary",
}
"""`encoding_format` → type of the vectors in a file."""


@dataclass(frozen=True)
class EmbedRequest:
    """Checked texts. `task` applies to the queries, `normalize` and `encoding_format` to the returned vectors.

    `single_query`, `single_document`: the first one came as `query` or `document`, not in a list.
    """

    queries: list[str]
    documents: list[str]
    task: str
    normalize: bool = False
    encoding_format: EncodingFormat = "float"
    long_texts: LongTexts = "truncate"
    single_query: bool = False
    single_document: bool = False

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
        long_texts: str,
    ) -> Self:
        """Check the inputs of predict.py, and put each single text before its list. Raises InputError."""
        if encoding_format not in get_args(EncodingFormat):
            choices = ", ".join(get_args(EncodingFormat))
            raise InputError(f"`encoding_format` is {encoding_format!r:.100}: choose one of {choices}")
        check_long_texts(long_texts)
        request = cls(
            gather("query", query, "queries", queries, limits.characters),
            gather("document", document, "documents", documents, limits.characters),
            check_task(task, limits.characters),
            normalize,
            cast(EncodingFormat, encoding_format),
            cast(LongTexts, long_texts),
            query is not None,
            document is not None,
        )
        if not request.texts:
            raise InputError(
                "there is no text: pass at least one of `query`, `document`, `queries`, `documents`, `file`"
            )
        limits.check_texts(request.texts, repeated=len(task) * len(request.queries))
        return request

    @property
    def texts(self) -> list[str]:
        """All queries, then all documents: the order of the vectors."""
        return self.queries + self.documents

    def name(self, index: int) -> str:
        """The input of `texts[index]`, such as `documents[3]`."""
        if index < len(self.queries):
            return _name("query", "queries", index, self.single_query)
        return _name("document", "documents", index - len(self.queries), self.single_document)

    @property
    def characters(self) -> int:
        """Characters to tokenize: each query is prompted with the task."""
        return sum(map(len, self.texts)) + len(self.task) * len(self.queries)


@dataclass(frozen=True)
class FileRequest:
    """A file of texts and how to embed it. Its content is not checked yet."""

    path: Path
    task: str
    normalize: bool
    encoding_format: str
    long_texts: LongTexts

    @classmethod
    def from_inputs(
        cls, limits: Limits, file: object, task: str, normalize: bool, encoding_format: str, long_texts: str
    ) -> Self:
        """Check the inputs of predict.py. Raises InputError."""
        if not isinstance(file, Path):  # Cog passes on what is no URL, such as the path of a file on the server
            raise InputError("`file` is not a URL: pass https://…, or data:…;base64,…")
        if encoding_format not in FILE_VECTORS:
            choices = ", ".join(FILE_VECTORS)
            raise InputError(f"`encoding_format` is {encoding_format!r:.100}: with `file` choose one of {choices}")
        check_long_texts(long_texts)
        task = check_task(task, limits.characters)
        return cls(file, task, normalize, encoding_format, cast(LongTexts, long_texts))


def read_request(
    limits: Limits,
    task: str,
    query: str | None,
    document: str | None,
    normalize: bool,
    queries: list[str] | None,
    documents: list[str] | None,
    encoding_format: str,
    long_texts: str,
    file: object,
) -> EmbedRequest | FileRequest:
    """The request for the inputs of predict.py. Raises InputError."""
    if file is None:
        return EmbedRequest.from_inputs(
            limits, task, query, document, normalize, queries, documents, encoding_format, long_texts
        )
    if any(given is not None for given in (query, document, queries, documents)):
        raise InputError(
            "`file` cannot be combined with texts: leave out `query`, `document`, `queries` and `documents`"
        )
    return FileRequest.from_inputs(limits, file, task, normalize, encoding_format, long_texts)


def _name(single: str, plural: str, index: int, has_single: bool) -> str:
    return single if has_single and index == 0 else f"{plural}[{index - has_single}]"
