"""`Embedder.embed_texts` embeds texts exactly as given: equal to stock code and to the two prompted methods."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from e5 import DEFAULT_TASK, Embedder, InputError
from scripts.demo import DOCUMENTS, QUERIES
from tests import checkpoints
from tests.reference import Reference, relative_l2, with_peft

TEXTS = [*QUERIES, *DOCUMENTS, "a", " two leading spaces and one behind ", "南瓜的家常做法", "word " * 700]
PROMPTS = ["", "query: ", "passage: ", "Represent this sentence:\n", " "]


@pytest.fixture(scope="module")
def instruct() -> Embedder:
    return Embedder.load(dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def prefix(xlm_roberta_folder: Path) -> Embedder:
    return Embedder.load("multilingual-e5-base", xlm_roberta_folder, dtype="float32", device="cpu")


@pytest.fixture(params=["instruct", "prefix"])
def embedder(request: pytest.FixtureRequest) -> Embedder:
    loaded: Embedder = request.getfixturevalue(request.param)
    return loaded


@pytest.fixture(scope="module")
def references(xlm_roberta_folder: Path) -> dict[str, Reference]:
    return {
        "e5-mistral-tiny": Reference(with_peft(checkpoints.EMBEDDED), checkpoints.EMBEDDED, 4096),
        "multilingual-e5-base": Reference.load(xlm_roberta_folder, 512),
    }


@pytest.mark.parametrize("prompt", PROMPTS)
def test_vectors_equal_stock_code_on_prompt_and_text_joined(
    embedder: Embedder, references: dict[str, Reference], prompt: str
) -> None:
    want = references[embedder.model.name].embed([prompt + text for text in TEXTS])
    assert relative_l2(embedder.embed_texts(TEXTS, prompt), want) < 1e-5


def test_prefix_model_s_prompts_give_its_queries_and_documents(prefix: Embedder) -> None:
    np.testing.assert_array_equal(prefix.embed_texts(TEXTS, prompt="query: "), prefix.embed_queries(TEXTS))
    np.testing.assert_array_equal(prefix.embed_texts(TEXTS, prompt="passage: "), prefix.embed_documents(TEXTS))
    assert relative_l2(prefix.embed_texts(TEXTS), prefix.embed_documents(TEXTS)) > 0.01


def test_instruct_model_s_documents_are_texts_as_given(instruct: Embedder) -> None:
    np.testing.assert_array_equal(instruct.embed_texts(TEXTS), instruct.embed_documents(TEXTS))
    np.testing.assert_array_equal(instruct.embed_texts(TEXTS), instruct.embed_queries(TEXTS, task=""))


@pytest.mark.parametrize("task", [DEFAULT_TASK, "Find a rhyme"])
def test_instruction_can_be_passed_as_prompt(instruct: Embedder, task: str) -> None:
    got = instruct.embed_texts(TEXTS, prompt=f"Instruct: {task}\nQuery: ")
    np.testing.assert_array_equal(got, instruct.embed_queries(TEXTS, task=task))


@pytest.mark.usefixtures("all_threads")
def test_order_and_batch_do_not_change_a_vector(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    want = np.concatenate([embedder.embed_texts([text], "query: ") for text in TEXTS])
    for budget in (1, 64, 100_000):
        monkeypatch.setattr(embedder, "max_batch_tokens", budget)
        assert relative_l2(embedder.embed_texts(TEXTS[::-1], "query: ")[::-1], want) < 1e-5


def test_normalize_gives_vectors_of_length_one(embedder: Embedder) -> None:
    raw, unit = embedder.embed_texts(TEXTS), embedder.embed_texts(TEXTS, normalize=True)
    assert abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    assert embedder.embed_texts([]).shape == (0, embedder.dimensions)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.embed_texts("one text"), "`texts` is of type str, not a list of texts"),
        (lambda e: e.embed_texts(["a", ""]), r"`texts\[1\]` is empty"),
        (lambda e: e.embed_texts(["a", "b\ud800"]), r"`texts\[1\]` is not valid Unicode.*U\+D800"),
        (
            lambda e: e.embed_texts(["a"], prompt=None),
            "`prompt` is null, not a text: pass the string to put in front",
        ),
        (lambda e: e.embed_texts(["a"], prompt=["query: "]), "`prompt` is of type list"),
        (lambda e: e.embed_texts(["a"], prompt="\udfff"), r"`prompt` is not valid Unicode.*U\+DFFF"),
    ],
)
def test_bad_texts_and_prompts_are_rejected(
    embedder: Embedder, call: Callable[[Embedder], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(embedder)
    assert embedder.embed_texts(["a"]).shape == (1, embedder.dimensions)


def test_prompt_that_leaves_the_text_no_room_is_rejected(embedder: Embedder) -> None:
    limit = embedder.tokenizer.max_tokens
    with pytest.raises(
        InputError,
        match=rf"`prompt` takes {limit} tokens or more of the {limit} that it shares with the text: pass a shorter",
    ):
        embedder.embed_texts(["a"], prompt="word " * 10_000)


def test_truncated_texts_are_counted_and_progress_is_shown(
    embedder: Embedder, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    embedder.embed_texts(["word " * 9_000, "short"], progress=True)
    assert caplog.messages == [f"1 of 2 texts were cut to {embedder.tokenizer.max_tokens} tokens"]
    assert "2/2" in capsys.readouterr().err
