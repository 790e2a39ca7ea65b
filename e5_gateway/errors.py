"""The gateway's errors. Each API module has an ErrorFormat, which writes them as the clients of that API expect."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e5_cog.failures import parse_failure

Json = dict[str, Any]
MAX_QUOTE, MAX_MESSAGE = 200, 1_000
"""Characters that a message quotes of what a client sent, and of a whole message."""


def shorten(text: str, limit: int = MAX_QUOTE) -> str:
    """The text, or its beginning and its end, in at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: 2 * limit // 3]} … {text[3 - limit // 3 :]}"


@dataclass
class GatewayError(Exception):
    """A refusal with its HTTP status. `param`: the field at fault. `code`: OpenAI's identifier of the cause.

    A message may quote what the client sent: what is too long is shortened.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None  # seconds
    state: str | None = None
    invalid_fields: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        for entry in self.invalid_fields:
            entry |= {name: shorten(entry[name]) for name in ("field", "description")}
        if self.invalid_fields:
            self.message = "".join(f"- {entry['field']}: {entry['description']}\n" for entry in self.invalid_fields)
        else:
            self.message = shorten(self.message, MAX_MESSAGE)
        self.param = None if self.param is None else shorten(self.param)

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def invalid_field(field: str, problem: str) -> GatewayError:
    """The refusal of one field of a request of Replicate's API."""
    return GatewayError(422, "", invalid_fields=[{"type": "invalid", "field": field, "description": problem}])


class Unavailable(GatewayError):
    """The target cannot answer now. `state`: the status of its /health-check, or one of the gateway's, such as DOWN.

    `reached`: the target may have started this request, which may have broken it.
    """

    def __init__(self, state: str, detail: str, retry_after: int = 2, *, reached: bool = False) -> None:
        super().__init__(503, f"the model is {state}: {detail}", "model_unavailable", None, retry_after, state)
        self.reached = reached


class QueueFull(GatewayError):
    """A limit on waiting requests or on their bytes is reached. `load`: the amount that waits, with its unit."""

    def __init__(self, load: str, retry_after: int) -> None:
        message = f"too much is waiting ({load}): send this request again in {retry_after} s"
        super().__init__(429, message, "rate_limit_exceeded", None, retry_after)


@dataclass(frozen=True)
class ErrorFormat:
    """The error format of one API: `body` writes an error for every path that `paths` matches, routed or not."""

    paths: re.Pattern[str]
    body: Callable[[GatewayError], Json]


def prediction_error(prediction: Mapping[str, Any]) -> GatewayError:
    """The error of a request whose prediction failed or was canceled."""
    reason = parse_failure(prediction.get("error"))
    if reason.input_fault:
        return GatewayError(400, reason.message)
    if prediction.get("status") == "canceled":
        return GatewayError(409, "the prediction was canceled at the server", "canceled")
    if reason.error_class == "OverloadError":
        return GatewayError(429, reason.message, "rate_limit_exceeded", retry_after=1)
    return GatewayError(500, reason.message, "prediction_failed")
