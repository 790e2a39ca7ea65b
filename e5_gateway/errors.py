"""What the gateway refuses or cannot do, once, and its shape in each of the three APIs.

OpenAI's shape: the API reference's error object. Replicate's: problem details (RFC 7807), as its clients read them.
Cog's: `detail`, and with 503 the `status` that /health-check has.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


class SettingsError(ValueError):
    """An option or variable with a value that cannot be: names it and the right ones."""


@dataclass
class GatewayError(Exception):
    """A refusal with its HTTP status. `param`: the field at fault. `code`: OpenAI's word for the cause."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    state: str | None = None
    invalid_fields: list[Json] = field(default_factory=list)

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


class Unavailable(GatewayError):
    """The target does not answer, or not yet. `state` is what its /health-check says, or DOWN.

    `reached`: it may have begun with the request, and that may be why it went away.
    """

    def __init__(self, state: str, detail: str, retry_after: int = 2, *, reached: bool = False) -> None:
        super().__init__(503, f"the model is {state}: {detail}", "model_unavailable", None, retry_after, state)
        self.reached = reached


class QueueFull(GatewayError):
    """As much is waiting as may wait."""

    def __init__(self, what: str, retry_after: int) -> None:
        message = f"too much is waiting ({what}): send this request again in {retry_after} s"
        super().__init__(429, message, "rate_limit_exceeded", None, retry_after)


OPENAI_TYPES = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}
REPLICATE_TITLES = {
    400: "Bad request",
    401: "Unauthenticated",
    404: "Not found",
    413: "Request too large",
    422: "Input validation failed",
    429: "Too many requests",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
}


def openai_body(error: GatewayError) -> Json:
    """{"error": {message, type, param, code}}"""
    kind = OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def replicate_body(error: GatewayError) -> Json:
    """{title, detail, status}, and invalid_fields where inputs are at fault."""
    title = REPLICATE_TITLES.get(error.status, "Error")
    body: Json = {"title": title, "detail": error.message, "status": error.status}
    return body | ({"invalid_fields": error.invalid_fields} if error.invalid_fields else {})


def cog_body(error: GatewayError) -> Json:
    """{detail}, and the target's state where that is the cause."""
    return {"detail": error.message} | ({"status": error.state} if error.state else {})


@dataclass(frozen=True)
class Failure:
    """Why a prediction failed: the class of the predictor's exception (empty when unknown) and its message."""

    kind: str
    message: str
    of_the_server: bool = False  # its worker has crashed, say: nothing that the predictor raised

    @property
    def of_the_input(self) -> bool:
        return self.kind == "InputError"


_FAILURE = re.compile(r"(?:Prediction failed: )?(?:Async prediction failed: )?(?:([A-Za-z_]\w*): )?(.*)", re.DOTALL)


def failure(error: object) -> Failure:
    """What coglet 0.23 writes in `error`: 'Prediction failed: Async prediction failed: InputError: …'.

    Its own troubles ('Worker crashed', 'Failed to send request: …') come without the first of these.
    """
    kind, message = _FAILURE.fullmatch(str(error or "")).groups()  # type: ignore[union-attr]  # it matches any text
    if kind and not kind.endswith(("Error", "Exception")):
        kind, message = "", f"{kind}: {message}"
    of_the_server = bool(error) and not str(error).startswith("Prediction failed: ")
    return Failure(kind or "", message or "the prediction failed without a reason", of_the_server)


def failed(prediction: Mapping[str, Any]) -> GatewayError:
    """A prediction that ended without an output, as the refusal of a request that waited for it."""
    found = failure(prediction.get("error"))
    if found.of_the_input:
        return GatewayError(400, found.message)
    if prediction.get("status") == "canceled":
        return GatewayError(409, "the prediction was canceled at the server", "canceled")
    if found.kind == "OverloadError":
        return GatewayError(429, found.message, "rate_limit_exceeded", retry_after=1)
    return GatewayError(500, found.message, "prediction_failed")
