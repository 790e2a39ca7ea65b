"""What a request may contain: every text is checked once, here, before anything is computed."""

from collections.abc import Sequence

from e5.errors import InputError


def check_text(name: str, text: object, most: int | None = None) -> str:
    """`text` itself, if a model can embed it and it has at most `most` characters.

    Raises InputError that names the input, the cause and the cure.
    """
    if not isinstance(text, str):
        raise InputError(f"`{name}` is {_kind(text)}, not a text: pass a string")
    _check_length(name, text, most)
    _check_unicode(name, text)
    if not text.strip():
        state = "empty" if not text else "only white space"
        raise InputError(f"`{name}` is {state}: pass the text to embed, or leave it out")
    return text


def check_task(task: object, most: int | None = None) -> str:
    """`task` itself, of at most `most` characters; the empty one is allowed and means: no instruction.

    Raises InputError.
    """
    if not isinstance(task, str):
        raise InputError(f"`task` is {_kind(task)}, not a text: pass a one-sentence instruction")
    _check_length("task", task, most)
    _check_unicode("task", task)
    return task


def check_prompt(prompt: object) -> str:
    """`prompt` itself, if it is valid Unicode; it may be empty. Raises InputError."""
    if not isinstance(prompt, str):
        raise InputError(f"`prompt` is {_kind(prompt)}, not a text: pass the string that goes in front of every text")
    _check_unicode("prompt", prompt)
    return prompt


def check_texts(name: str, texts: object, most: int | None = None) -> list[str]:
    """The texts of a list, each checked as `name[i]`. Raises InputError."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise InputError(f"`{name}` is {_kind(texts)}, not a list of texts: pass a list, also for a single text")
    return [check_text(f"{name}[{index}]", text, most) for index, text in enumerate(texts)]


def gather(one_name: str, one: object, many_name: str, many: object, most: int | None = None) -> list[str]:
    """The single text (if given) and then the list (if given), all checked. Raises InputError."""
    first = [] if one is None else [check_text(one_name, one, most)]
    return first + ([] if many is None else check_texts(many_name, many, most))


def _check_length(name: str, text: str, most: int | None) -> None:
    if most is not None and len(text) > most:
        raise InputError(
            f"`{name}` has {len(text):,} characters, more than the {most:,} of E5_MAX_CHARACTERS: cut it into passages"
        )


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"`{name}` is not valid Unicode: it has the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}; decode the text with the right encoding, or replace that character"
        ) from None


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
