"""Long texts: truncated, refused, or averaged over windows that cover the whole text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e5 import Embedder, InputError
from e5.tokens import Tokenizer, Tokens
from e5.vectors import Vectors
from tests.checkpoints import EMBEDDED
from tests.reference import encoder_ids, relative_l2, sentencepiece_model
from tests.token_ids import lists

PROMPT = "Instruct: Find it.\nQuery: "
SHORT = 64
TOKENIZER = EMBEDDED / "base" / "tokenizer.json"


@pytest.fixture(scope="module")
def short(library: Embedder) -> Embedder:
    """The embedded model, as one that reads 64 tokens."""
    tokenizer = Tokenizer(TOKENIZER, ("<s>", "</s>"), SHORT, literal=True)
    return Embedder(library.model, library.packed, tokenizer, source=library.source)


def windows_by_hand(prompt: str, text: str, limit: int) -> list[list[int]]:
    """`<s>`, prompt, part of the text, `</s>`, with SentencePiece's own tokens."""
    model = sentencepiece_model()
    whole, before = model.encode(prompt + text), model.encode(prompt.strip()) if prompt else []
    assert whole[: len(before)] == before
    own, room = whole[len(before) :], limit - 2 - len(before)
    return [[1, *before, *own[start : start + room], 2] for start in range(0, len(own), room)]


def mean_by_hand(embedder: Embedder, windows: list[list[int]], prompt_tokens: int) -> Vectors:
    total, weight = np.zeros(embedder.dimensions), 0
    for window in windows:
        own = len(window) - 2 - prompt_tokens
        vector = embedder.embed_tokens(Tokens([np.array(window, np.int32)], [len(window)]))[0]
        total, weight = total + own * vector.astype(np.float64), weight + own
    return (total / weight).astype(np.float32)


@pytest.mark.parametrize("words", [62, 63, 200, 1000])
@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_average_is_the_token_weighted_mean_of_windows_that_cover_the_text(
    short: Embedder, words: int, prompt: str
) -> None:
    text = " ".join(f"word{index % 7}" for index in range(words))
    windows = windows_by_hand(prompt, text, SHORT)
    tokens = short.tokenizer.encode_windows([text], [prompt])
    assert lists(tokens.ids) == windows
    assert tokens.lengths == [len(sentencepiece_model().encode(prompt + text)) + 2] and tokens.truncated == []
    if prompt:
        got = short.embed_queries([text], task="Find it.", long_texts="average")[0]
    else:
        got = short.embed_documents([text], long_texts="average")[0]
    want = mean_by_hand(short, windows, len(sentencepiece_model().encode(prompt.strip())) if prompt else 0)
    assert relative_l2(got[None], want[None]) < 1e-5
    if len(windows) > 1:
        cut = short.embed_texts([text], prompt)[0]
        assert relative_l2(got[None], cut[None]) > 1e-2


def test_short_texts_keep_their_vector_to_the_last_bit(short: Embedder) -> None:
    texts = ["short", "word " * 300, "also short", "\u200b"]
    averaged = short.embed_documents(texts, long_texts="average")
    for index in (0, 2, 3):
        tokens = short.tokenize([], [texts[index]], "")
        rows = short.embed_tokens(tokens)
        assert relative_l2(averaged[index : index + 1], rows) < 1e-5
    tokens = short.tokenizer.encode_windows(["a", "word " * 300], ["", ""])
    rows = np.random.default_rng(0).standard_normal((len(tokens), 5)).astype(np.float32)
    assert tokens.average(rows)[0].tobytes() == rows[0].tobytes()


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=300), st.sampled_from(["", "query: ", "passage: ", PROMPT]), st.integers(1, 30))
def test_windows_cover_every_token_once(text: str, prompt: str, times: int) -> None:
    whole = Tokenizer(TOKENIZER, ("<s>", "</s>"), 10**6, literal=True)
    cut = Tokenizer(TOKENIZER, ("<s>", "</s>"), SHORT, literal=True)
    ids = lists(whole.encode([prompt + text * times]).ids)[0]
    tokens = cut.encode_windows([text * times], [prompt])
    windows = lists(tokens.ids)
    assert windows[0] == lists(cut.encode([prompt + text * times]).ids)[0]
    assert all(window[0] == 1 and window[-1] == 2 and len(window) <= SHORT for window in windows)
    if len(windows) == 1:
        assert windows == [ids]
        return
    assert tokens.weights is not None
    own = [window[-1 - weight : -1] for window, weight in zip(windows, tokens.weights[0], strict=True)]
    prompts = {tuple(window[: -1 - weight]) for window, weight in zip(windows, tokens.weights[0], strict=True)}
    assert len(prompts) == 1, "each window has the same prompt"
    before = prompts.pop()
    assert [*before, *(token for part in own for token in part), 2] == ids
    assert whole.encode([prompt.rstrip()]).lengths[0] - 1 == len(before)


@pytest.mark.parametrize("kind", ["query: ", "passage: "])
def test_encoders_windows_have_the_prompt(bert_folder: Path, xlm_roberta_folder: Path, kind: str) -> None:
    text = "long and wide " * 400
    for folder, special in ((bert_folder, ("[CLS]", "[SEP]")), (xlm_roberta_folder, ("<s>", "</s>"))):
        tokens = Tokenizer(folder / "tokenizer.json", special, 512, literal=False).encode_windows([text], [kind])
        windows, whole = lists(tokens.ids), encoder_ids(folder, kind + text, 10**5)
        before = encoder_ids(folder, kind.strip(), 99)[:-1]
        assert len(before) > 1 and len(windows) > 1
        assert all(window[: len(before)] == before and window[-1] == whole[-1] for window in windows)
        assert [*before, *(token for window in windows for token in window[len(before) : -1]), whole[-1]] == whole


@pytest.mark.parametrize("embed", ["embed_queries", "embed_documents", "embed_texts"])
def test_error_names_the_text_its_tokens_and_the_limit(short: Embedder, embed: str) -> None:
    texts = ["fits", "word " * 62, "word " * 80]
    name = embed.removeprefix("embed_")
    length = len(sentencepiece_model().encode((PROMPT if name == "queries" else "") + texts[1])) + 2
    options: dict[str, Any] = {"task": "Find it."} if name == "queries" else {}
    with pytest.raises(InputError, match=rf"^`{name}\[1\]` has {length} tokens, more than the 64 of e5-mistral-tiny: "):
        getattr(short, embed)(texts, long_texts="error", **options)
    exact = ["word " * 61]  # and two special tokens, one of which is the last space
    assert len(short.embed_documents(exact, long_texts="error")) == 1


def test_later_parts_of_a_long_list_are_named_by_their_index(short: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e5.embedder.PART", 16)
    monkeypatch.setattr(short, "device", "cuda")
    with pytest.raises(InputError, match=r"`documents\[20\]`"):
        short.embed_documents(["a"] * 20 + ["word " * 99], long_texts="error")
    texts = [f"text {index}" for index in range(40)]
    texts[3] = texts[30] = "word " * 300
    averaged = short.embed_documents(texts, long_texts="average")
    assert relative_l2(averaged[:3], short.embed_documents(texts[:3])) < 1e-5
    assert relative_l2(averaged[3:4], averaged[30:31]) < 1e-5
    assert relative_l2(averaged[31:], short.embed_documents(texts[31:])) < 1e-5


def test_nan_in_a_window_names_the_text(short: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Embedder.forward

    def broken(self: Embedder, ids: Any) -> torch.Tensor:
        vectors = forward(self, ids).clone()
        vectors[[len(each) < SHORT and each[1] != first for each in ids]] = torch.nan
        return vectors

    first = short.tokenize([], ["short"], "").ids[0][1]
    monkeypatch.setattr(Embedder, "forward", broken)
    with pytest.raises(FloatingPointError, match="text 2 of 3"):  # its last window is the only sequence with NaN
        short.embed_documents(["short", "word " * 150, "short"], long_texts="average")


def test_unknown_value_is_refused(short: Embedder) -> None:
    with pytest.raises(InputError, match=r"`long_texts` is 'cut': choose one of truncate, error, average"):
        short.embed_documents(["a"], long_texts="cut")  # type: ignore[arg-type]
