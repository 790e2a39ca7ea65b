"""Parser of the `error` text of a failed prediction."""

import re
from dataclasses import dataclass

_ERROR = re.compile(
    r"(?P<predictor>Prediction failed: )?(?:Async prediction failed: )?"
    r"(?:(?P<error_class>(?=[A-Za-z_])\w*(?:Error|Exception)): )?(?P<message>.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class FailureReason:
    """Why a prediction failed: class and message of the predictor's exception. The class is "" if unknown.

    `server_fault`: the error is coglet's own, such as "Worker crashed"; the predictor did not raise it.
    """

    error_class: str
    message: str
    server_fault: bool

    @property
    def input_fault(self) -> bool:
        return self.error_class == "InputError"


def parse_failure(error: object, default: str = "the prediction failed without a reason") -> FailureReason:
    """Parse the text that coglet 0.23 writes: "Prediction failed: Async prediction failed: InputError: <message>".

    coglet's own errors ("Worker crashed", "Failed to send request: …") lack the first prefix. `default` replaces a
    missing message.
    """
    match = _ERROR.fullmatch(str(error or ""))
    assert match is not None  # it matches any text
    server_fault = bool(error) and match["predictor"] is None
    return FailureReason(match["error_class"] or "", match["message"] or default, server_fault)
