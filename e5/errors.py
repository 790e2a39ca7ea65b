"""The errors that a user can cause, each with its cause and its cure in the message.

Anything else that escapes the library is a bug in it.
"""


class InputError(ValueError):
    """A request that cannot be embedded: names the input, the cause and the cure."""


class SettingsError(ValueError):
    """A setting with a value that does not exist: names the setting and the right values."""


class WeightsError(RuntimeError):
    """Weights that are missing, incomplete, broken or not permitted: says what to do."""


class OverloadError(RuntimeError):
    """Too much is waiting for the model: says how much, and to try again."""


class ModelError(RuntimeError):
    """The model could not compute a text, or has stopped: says which text and why."""
