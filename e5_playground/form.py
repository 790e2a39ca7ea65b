"""What a person typed → the inputs of one prediction. One rule, used for the request and for the code that shows it.

Names, descriptions and defaults are those of predict.py, read from its source as Cog's build reads it: a page that
told another story would be wrong sooner or later. What the model refuses is the model's to say, not checked here.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from e5_cog import static_schema
from e5_cog.repository import PREDICTOR

Json = dict[str, Any]
Field = Literal["", "task", "queries", "documents", "key"]

SIDES: tuple[tuple[str, Literal["queries", "documents"]], ...] = (("query", "queries"), ("document", "documents"))
"""An input for one text, and the input for several."""


class FormError(ValueError):
    """The form holds nothing that could be sent: says why, and beside which field ("" is the whole form)."""

    def __init__(self, field: Field, message: str) -> None:
        super().__init__(message)
        self.field: Field = field


@dataclass(frozen=True)
class Form:
    """The fields as they stand on the page. `queries` and `documents` are the text of one box each."""

    task: str
    queries: str
    documents: str
    normalize: bool
    encoding_format: str
    long_texts: str


@dataclass(frozen=True)
class Inputs:
    """predict()'s inputs: `help`, `default` and `choices` by name."""

    help: dict[str, str]
    default: Json
    choices: dict[str, list[str]]


@cache
def inputs() -> Inputs:
    """predict.py's inputs as the schema has them."""
    signature = static_schema.read(PREDICTOR)
    return Inputs(
        {name: entry["description"] for name, entry in signature.inputs.items()},
        {name: entry.get("default") for name, entry in signature.inputs.items()},
        {name: enum["enum"] for name, enum in signature.enums.items()},
    )


def texts(name: Field, box: str) -> list[str]:
    """The texts of one box: a JSON list where it begins with `[`, else one a line, empty lines left out.

    Raises FormError for JSON that is not a list of strings, and for what no UTF-8 can carry.
    """
    if not box.lstrip().startswith("["):
        found = [line.strip() for line in box.split("\n") if line.strip()]
    else:
        found = _json_texts(name, box)
    for index, text in enumerate(found):
        check_characters(name, f"Text {index + 1}", text)
    return found


def check_characters(name: Field, what: str, text: str) -> None:
    """Raise FormError for what no UTF-8 can carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"{what} has half of a character at position {error.start}: it cannot be sent."
        raise FormError(name, message) from None


def request(form: Form) -> Json:
    """The form → the `input` of POST /predictions; what is empty or as the model has it anyway stays out.

    One text goes as `query` or `document`, several as `queries` or `documents`. The task goes where there is a query
    for it. Raises FormError.
    """
    check_characters("task", "The task", form.task)
    found = {many: texts(many, form.queries if many == "queries" else form.documents) for _, many in SIDES}
    if not any(found.values()):
        raise FormError("", "There is no text yet: write at least one query or one document.")
    sent: Json = {"task": form.task} if found["queries"] else {}
    for one, many in SIDES:
        if len(found[many]) == 1:
            sent[one] = found[many][0]
        elif found[many]:
            sent[many] = found[many]
    defaults = inputs().default
    options = {
        "normalize": form.normalize,
        "encoding_format": form.encoding_format,
        "long_texts": form.long_texts,
    }
    return sent | {name: value for name, value in options.items() if value != defaults[name]}


def sides(sent: Json) -> tuple[list[str], list[str]]:
    """A request's queries and documents, in the order of the answer's vectors."""
    left, right = ([sent[one]] if one in sent else list(sent.get(many, ())) for one, many in SIDES)
    return left, right


def field_of(name: str) -> Field:
    """The box in which a person mends what a message calls `query`, `documents[3]` or `task`."""
    stem = name.partition("[")[0]
    for one, many in SIDES:
        if stem in (one, many):
            return many
    return "task" if stem == "task" else ""


def _json_texts(name: Field, box: str) -> list[str]:
    try:
        value = json.loads(box)
    except (ValueError, RecursionError) as error:
        where = (
            f"line {error.lineno}, column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else "it is nested too deeply"
        )
        raise FormError(
            name,
            f"This begins with [ and is read as a JSON list, which it is not ({where}). Mend the JSON; or, to send a "
            "text that begins with [, write it as a list of one: "
            '["[like this]"].',
        ) from None
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise FormError(
                name,
                f'Item {index + 1} of the JSON list is {_kind(text)}: a list of strings is needed, ["like", "this"].',
            )
    return list(value)


def _kind(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return {int: "a number", float: "a number", list: "a list", dict: "an object"}[type(value)]
