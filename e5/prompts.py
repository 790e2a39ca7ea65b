"""Task and query → the prompt that a model was trained with. Source: the model cards.

Instruct models read `Instruct: {task}\nQuery: {query}` and bare documents; prefix models read `query: {query}` and
`passage: {document}`.
"""

from e5.catalog import PromptKind

DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"


def query_prompt(kind: PromptKind, task: str, query: str) -> str:
    """The text to embed for a query. An empty task leaves an instruct query bare; prefix models ignore the task."""
    if kind == "prefix":
        return f"query: {query}"
    return f"Instruct: {task}\nQuery: {query}" if task else query


def document_prompt(kind: PromptKind, document: str) -> str:
    """The text to embed for a document, which never has an instruction."""
    return f"passage: {document}" if kind == "prefix" else document
