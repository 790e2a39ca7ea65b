"""Errors that a user or a machine can cause. The message says the cause and the cure.

Any other exception from the library is a bug.
"""


class InputError(ValueError):
    """A request that cannot be embedded. The message names the input."""


class SettingsError(ValueError):
    """A setting with an invalid value. The message names the setting and the valid values."""


class WeightsError(RuntimeError):
    """Weights that are missing, incomplete, broken, or that the user may not download."""


class OverloadError(RuntimeError):
    """The queue is full."""


class ModelError(RuntimeError):
    """The model failed on a text, which the message names, or its thread has ended."""
