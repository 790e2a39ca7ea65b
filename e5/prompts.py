"""Task + query → the text a model was trained on. Documents of instruct models go in as they are.

Source of the forms: the model cards (`facts` in the README's model table); an instruct query is
`Instruct: {task}\nQuery: {query}`, a prefix model reads `query: ` and `passage: `.
"""

from e5.catalog import PromptKind

DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"


def query_prompt(kind: PromptKind, task: str, query: str) -> str:
    """The text to embed for one query. An empty task leaves an instruct query bare; prefix models have no task."""
    if kind == "prefix":
        return f"query: {query}"
    return f"Instruct: {task}\nQuery: {query}" if task else query


def document_prompt(kind: PromptKind, document: str) -> str:
    """The text to embed for one document: never with an instruction."""
    return f"passage: {document}" if kind == "prefix" else document
