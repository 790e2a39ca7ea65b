"""The mistakes that servers make with E5 models: what each is called, which property it belongs to, and its cure."""

from dataclasses import dataclass
from typing import Literal

Aspect = Literal["special tokens", "pooling", "prompts", "adapter", "text", "truncation"]
ASPECTS: tuple[Aspect, ...] = ("special tokens", "pooling", "prompts", "adapter", "text")


@dataclass(frozen=True)
class Mistake:
    """`name`: completes "explained by: …"."""

    name: str
    aspect: Aspect
    cure: str


_APPEND = (
    "append the last special token to the token ids yourself, once: the tokenizer's post-processor does not do it, or "
    "the server adds its own to it"
)
_BEGIN = "the tokenizer must add the first special token exactly once: check add_bos_token and the post-processor"
_POOL = "set the server's pooling to the model's"
_CLIENT_PROMPTS = "turn off the server's prompt (its default prompt or prefix setting), or send texts without one"
_SERVER_PROMPTS = (
    "add the prompt that belongs to the side: the server must know whether a text is a query or a document"
)

MISTAKES = (
    Mistake("no EOS", "special tokens", _APPEND),
    Mistake("EOS twice", "special tokens", _APPEND),
    Mistake("no BOS", "special tokens", _BEGIN),
    Mistake("BOS twice", "special tokens", _BEGIN),
    Mistake("no special tokens", "special tokens", "tokenize with the special tokens: add_special_tokens=True"),
    Mistake("last-token pooling", "pooling", _POOL),
    Mistake("mean pooling", "pooling", _POOL),
    Mistake("CLS pooling", "pooling", _POOL),
    Mistake("no prompt", "prompts", _SERVER_PROMPTS),
    Mistake("query prompt on documents", "prompts", "documents take the document prompt, or none in instruct models"),
    Mistake("document prompt on queries", "prompts", "queries take the query prompt"),
    Mistake("default task instead of the request's", "prompts", "pass the request's task on to the model"),
    Mistake("prompt twice", "prompts", _CLIENT_PROMPTS),
    Mistake("query prompt in front of the client's", "prompts", _CLIENT_PROMPTS),
    Mistake("document prompt in front of the client's", "prompts", _CLIENT_PROMPTS),
    Mistake("query: in front of the text", "prompts", "this model has no such prefix: remove it"),
    Mistake("passage: in front of the text", "prompts", "this model has no such prefix: remove it"),
    Mistake("adapter missing", "adapter", "load the adapter, or merge it into the base weights"),
    Mistake("text lower-cased", "text", "do not change the text: the tokenizer does what the model needs"),
    Mistake("line breaks replaced by spaces", "text", "do not change the text: line breaks are tokens of their own"),
    Mistake("EOS cut off", "truncation", "truncate the text first, and then append the last special token"),
    Mistake("beginning cut off", "truncation", "truncate at the end: truncation_side=right"),
    Mistake("not cut", "truncation", "set the longest text to the model's max_tokens"),
)
BY_NAME = {mistake.name: mistake for mistake in MISTAKES}

Candidate = tuple[str, ...]
"""Names of mistakes that are made together. Empty: none, the right computation."""
SEPARATOR = " and "


def label(candidate: Candidate) -> str:
    return SEPARATOR.join(candidate) or "the right computation"
