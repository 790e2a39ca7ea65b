"""The error of this package."""


class CorpusError(RuntimeError):
    """A run cannot start or go on. The message has the cause and the cure."""
