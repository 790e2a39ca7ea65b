"""Checks of input texts and their error messages."""

import pytest

from e5.errors import InputError
from e5.inputs import check_task, check_text, check_texts, gather


@pytest.mark.parametrize("text", ["a", " a ", "\x00", "😀", "n\u0303", "a" * 1_000_000, "\u200b"])
def test_texts_pass_unchanged(text: str) -> None:
    assert check_text("query", text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`query` is empty: pass the text to embed, or leave it out"),
        (" \n\t\u3000", "`query` is only white space: pass the text to embed, or leave it out"),
        (None, "`query` is null, not a text: pass a string"),
        (7, "`query` is of type int, not a text: pass a string"),
        (
            "ab\ud800c",
            "`query` is not valid Unicode: it has the lone surrogate U+D800 at character 2; decode the text with the "
            "right encoding, or replace the character",
        ),
    ],
)
def test_errors_name_input_cause_and_cure(text: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_text("query", text)
    assert str(caught.value) == message


def test_errors_in_lists_name_the_index() -> None:
    assert check_texts("documents", ("a", "b")) == ["a", "b"]
    with pytest.raises(InputError, match=r"`documents\[1\]` is empty"):
        check_texts("documents", ["a", ""])
    with pytest.raises(InputError, match="`queries` is of type str, not a list of texts"):
        check_texts("queries", "one text")


def test_single_text_comes_before_the_list() -> None:
    assert gather("query", "one", "queries", ["two", "three"]) == ["one", "two", "three"]
    assert gather("query", None, "queries", ["two"]) == ["two"]
    assert gather("query", None, "queries", None) == []
    assert gather("query", "one", "queries", []) == ["one"]


def test_task_may_be_empty_but_not_null() -> None:
    assert check_task("") == ""
    with pytest.raises(InputError, match="`task` is null"):
        check_task(None)
    with pytest.raises(InputError, match=r"`task` is not valid Unicode.*U\+DFFF"):
        check_task("\udfff")
