"""Checks of input texts, made once before anything is computed."""

from collections.abc import Sequence
from typing import Literal, get_args

from e5.errors import InputError

LongTexts = Literal["truncate", "error", "average"]
"""What to do with a text of more tokens than the model reads."""


def check_text(name: str, text: object, max_characters: int | None = None) -> str:
    """Return `text` if a model can embed it. `name` is the input's name in errors.

    Raises InputError for another type, more than `max_characters`, invalid Unicode, or no text but white space.
    """
    if not isinstance(text, str):
        raise InputError(f"`{name}` is {_kind(text)}, not a text: pass a string")
    _check_length(name, text, max_characters)
    _check_unicode(name, text)
    if not text.strip():
        state = "empty" if not text else "only white space"
        raise InputError(f"`{name}` is {state}: pass the text to embed, or leave it out")
    return text


def check_task(task: object, max_characters: int | None = None) -> str:
    """Like `check_text`, but the task may be empty, which means no instruction."""
    if not isinstance(task, str):
        raise InputError(f"`task` is {_kind(task)}, not a text: pass a one-sentence instruction")
    _check_length("task", task, max_characters)
    _check_unicode("task", task)
    return task


def check_prompt(prompt: object) -> str:
    """Return `prompt` if it is valid Unicode; it may be empty. Raises InputError."""
    if not isinstance(prompt, str):
        raise InputError(f"`prompt` is {_kind(prompt)}, not a text: pass the string to put in front of every text")
    _check_unicode("prompt", prompt)
    return prompt


def check_texts(name: str, texts: object, max_characters: int | None = None) -> list[str]:
    """Check each text of a list, named `name[i]` in errors. Raises InputError."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise InputError(f"`{name}` is {_kind(texts)}, not a list of texts: pass a list, even for a single text")
    return [check_text(f"{name}[{index}]", text, max_characters) for index, text in enumerate(texts)]


def check_long_texts(value: object) -> None:
    """Raise InputError for anything but the values of `LongTexts`."""
    if value not in get_args(LongTexts):
        raise InputError(f"`long_texts` is {value!r:.100}: choose one of {', '.join(get_args(LongTexts))}")


def gather(text_name: str, text: object, list_name: str, texts: object, max_characters: int | None = None) -> list[str]:
    """The single text and then those of the list, all checked. Either may be None. Raises InputError."""
    first = [] if text is None else [check_text(text_name, text, max_characters)]
    return first + ([] if texts is None else check_texts(list_name, texts, max_characters))


def _check_length(name: str, text: str, max_characters: int | None) -> None:
    if max_characters is not None and len(text) > max_characters:
        raise InputError(
            f"`{name}` has {len(text):,} characters, more than the {max_characters:,} of E5_MAX_CHARACTERS: "
            "split it into passages"
        )


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"`{name}` is not valid Unicode: it has the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}; decode the text with the right encoding, or replace the character"
        ) from None


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
