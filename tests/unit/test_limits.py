"""Limits are exact, and their errors name the limit and the value."""

import pytest

from e5.errors import InputError
from e5.limits import Limits

LIMITS = Limits(texts=3, characters=10, request_tokens=1, answer_numbers=100)


def test_texts_are_counted() -> None:
    LIMITS.check_texts(["a"] * 3)
    with pytest.raises(InputError, match=r"4 texts, more than the 3 of E5_MAX_TEXTS: send them in several requests"):
        LIMITS.check_texts(["a"] * 4)


def test_characters_of_all_texts_are_counted() -> None:
    LIMITS.check_texts(["a" * 10, "b" * 10])
    with pytest.raises(InputError, match=r"21 characters together, more than the 20 that E5_MAX_REQUEST_TOKENS=1 al"):
        LIMITS.check_texts(["a" * 10, "b" * 10, "c"])
    with pytest.raises(InputError, match="the texts and the task of each query have 22 characters together"):
        LIMITS.check_texts(["a", "b"], repeated=20)


def test_tokens_are_counted() -> None:
    LIMITS.check_tokens(1)
    with pytest.raises(InputError, match=r"2 tokens together, more than the 1 of E5_MAX_REQUEST_TOKENS"):
        LIMITS.check_tokens(2)


def test_numbers_of_an_answer_are_counted() -> None:
    LIMITS.check_answer(2, 2, 24)
    with pytest.raises(InputError, match=r"101 numbers \(100 of vectors, 1 scores\), more than the 100 .*base64"):
        LIMITS.check_answer(1, 1, 50)
    LIMITS.check_answer(10, 10, 0)
    with pytest.raises(InputError, match=r"110 numbers \(0 of vectors, 110 scores\).*: send fewer texts$"):
        LIMITS.check_answer(10, 11, 0)
