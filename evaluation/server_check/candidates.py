"""What a server may have computed for a text: the model's own procedure, and that procedure with known mistakes.

Plain data, without tensors: the variants are whole texts, `framed` and `cut` give token ids. `compute` embeds them.
"""

from collections.abc import Iterator, Mapping, Sequence

from e5.catalog import Pooling, PromptKind
from e5.prompts import DEFAULT_TASK, document_prompt, query_prompt
from evaluation.server_check.mistakes import Candidate
from evaluation.server_check.texts import TASK, Probe

POOLING_NAMES: Mapping[Pooling, str] = {"last": "last-token pooling", "mean": "mean pooling", "cls": "CLS pooling"}


def prompted(kind: PromptKind, probe: Probe) -> str:
    """The whole text, as the model's card wants it."""
    return query_prompt(kind, TASK, probe.text) if probe.side == "query" else document_prompt(kind, probe.text)


def prompt_variants(kind: PromptKind, probe: Probe) -> dict[str, str]:
    """Whole texts with a mistake in the prompt, by the mistake's name. Some equal the right text."""
    right, text = prompted(kind, probe), probe.text
    texts = {"no prompt": text}
    if kind == "prefix":
        own, other = ("query: ", "passage: ") if probe.side == "query" else ("passage: ", "query: ")
        other_side = "document prompt on queries" if probe.side == "query" else "query prompt on documents"
        in_front = "document" if probe.side == "query" else "query"
        return texts | {
            other_side: other + text,
            "prompt twice": own + right,
            f"{in_front} prompt in front of the client's": other + right,
        }
    if probe.side == "query":
        texts |= {
            "default task instead of the request's": query_prompt(kind, DEFAULT_TASK, text),
            "prompt twice": query_prompt(kind, TASK, right),
            "query prompt in front of the client's": query_prompt(kind, DEFAULT_TASK, right),
        }
    else:
        texts |= {
            "query prompt on documents": query_prompt(kind, TASK, text),
            "query prompt in front of the client's": query_prompt(kind, DEFAULT_TASK, text),
        }
    return texts | {
        "query: in front of the text": f"query: {right}",
        "passage: in front of the text": f"passage: {right}",
    }


def text_variants(right: str) -> dict[str, str]:
    """Whole texts that a server changed, by the mistake's name."""
    return {"text lower-cased": right.lower(), "line breaks replaced by spaces": " ".join(right.splitlines())}


def framed(first: Sequence[int], body: Sequence[int], last: Sequence[int]) -> Iterator[tuple[Candidate, list[int]]]:
    """Token ids with the right special tokens, and with each mistake in them."""
    for name, start, end in (
        ("", [*first], [*last]),
        ("no EOS", [*first], []),
        ("EOS twice", [*first], [*last, *last]),
        ("no BOS", [], [*last]),
        ("BOS twice", [*first, *first], [*last]),
        ("no special tokens", [], []),
    ):
        yield ((name,) if name else ()), [*start, *body, *end]


def cut(
    first: Sequence[int], body: Sequence[int], last: Sequence[int], max_tokens: int
) -> Iterator[tuple[Candidate, list[int]]]:
    """Token ids of a long text: cut as the model's card cuts it, in other ways, and not at all."""
    room = max_tokens - len(first) - len(last)
    yield (), [*first, *body[:room], *last]
    yield ("EOS cut off",), [*first, *body[: max_tokens - len(first)]]
    yield ("beginning cut off",), [*first, *body[-room:], *last]
    yield ("not cut",), [*first, *body, *last]
