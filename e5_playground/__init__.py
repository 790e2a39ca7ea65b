"""A web page for the model: a form, its results as tables, and the same request as code.

It is a guest of a FastAPI application and calls the model by the public HTTP API alone, like everyone else: nothing
here knows how vectors are computed. `e5` does not import this package.
"""

from e5_playground.page import mount

__all__ = ["mount"]
