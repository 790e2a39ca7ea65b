"""Exact token ids: the decoder's equal Mistral's own SentencePiece model, the encoders' equal transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import e5.tokens
from e5.errors import WeightsError
from e5.tokens import CHUNK_CHARACTERS, CHUNK_TEXTS, Tokenizer
from tests.checkpoints import EMBEDDED
from tests.reference import decoder_ids, encoder_ids, sentencepiece_model
from tests.token_ids import lists

MISTRAL = EMBEDDED / "base" / "tokenizer.json"
SPECIAL_TOKENS = ("<s>", "</s>")
TEXTS = [
    "how much protein should a female eat",
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: summit define",
    "1.清炒南瓜丝 原料:嫩南瓜半个 调料:葱、盐、白糖、鸡精",
    "😀👩‍👩‍👧 émigré naïve ﬁ ½",
    "  two leading,\tone tab, trailing  ",
    "\x00\x01\x7f control",
    "a",
    "</s>",
    "text with </s> and <s> and <unk> and [INST] inside",
    "<s>",
]


def test_known_ids() -> None:
    # The ids of "Hello" and "world" in Mistral-7B-v0.1's vocabulary, read from its tokenizer.model by hand.
    pieces = sentencepiece_model()
    hello, world = pieces.piece_to_id("▁Hello"), pieces.piece_to_id("▁world")
    assert lists(_mistral().encode(["Hello world"]).ids) == [[1, hello, world, 2]]


@pytest.mark.parametrize("text", TEXTS)
def test_decoder_matches_sentencepiece(text: str) -> None:
    assert lists(_mistral().encode([text]).ids) == [decoder_ids(text, 4096)]


@given(st.text(min_size=1, max_size=60))
def test_decoder_matches_sentencepiece_on_any_text(text: str) -> None:
    (ids,) = lists(_mistral().encode([text]).ids)
    assert ids == decoder_ids(text, 4096)
    assert ids[0] == 1 and ids[-1] == 2 and ids.count(1) == 1 and ids.count(2) == 1


@given(st.text(min_size=1, max_size=60), st.integers(2, 30))
def test_a_cut_text_fits_and_begins_with_the_same_tokens(text: str, max_tokens: int) -> None:
    tokenizer = Tokenizer(MISTRAL, SPECIAL_TOKENS, max_tokens, literal=True)
    cut = tokenizer.cut(text)
    assert text.startswith(cut)
    whole, kept = decoder_ids(text, max_tokens), decoder_ids(cut, 4096)
    if cut == text:
        assert len(decoder_ids(text, 4096)) <= max_tokens
    # A cut inside of a word gives its beginning other pieces; a character of four bytes has up to four tokens.
    assert len(kept) <= max_tokens + 2
    words = cut.split(" ")
    if len(words) > 2 and cut != text:
        stable = decoder_ids(" ".join(words[:-1]), 4096)[:-1]
        assert kept[: len(stable)] == whole[: len(stable)] == stable


def test_a_text_is_cut_between_characters() -> None:
    # "𝄞" is not a piece of the vocabulary: it has four tokens, one for each byte.
    assert decoder_ids("a𝄞b", 4096)[2:6] == decoder_ids("𝄞", 4096)[2:6]
    limits = {limit: Tokenizer(MISTRAL, SPECIAL_TOKENS, limit, literal=True).cut("a𝄞b") for limit in range(3, 9)}
    assert limits == {3: "a", 4: "a", 5: "a", 6: "a", 7: "a𝄞", 8: "a𝄞b"}


def test_special_tokens_in_a_text_are_characters() -> None:
    (ids,) = lists(_mistral().encode(["a </s> b <s> c"]).ids)
    assert ids.count(1) == 1 and ids.count(2) == 1


TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 12},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 2,
    "pad_type_id": 0,
    "pad_token": "</s>",
}


def _post_processor(*, bos: bool, eos: bool) -> Callable[[dict[str, Any]], None]:
    def change(file: dict[str, Any]) -> None:
        single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
        if bos:
            single.insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
        if eos:
            single.append({"SpecialToken": {"id": "</s>", "type_id": 0}})
        file["post_processor"]["single"] = single
        file["post_processor"]["special_tokens"] = {
            token: {"id": token, "ids": [index], "tokens": [token]} for token, index in (("<s>", 1), ("</s>", 2))
        }

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_post_processor(bos=True, eos=True), id="adds both"),
        pytest.param(_post_processor(bos=True, eos=False), id="adds only BOS"),
        pytest.param(_post_processor(bos=False, eos=False), id="adds none"),
        pytest.param(lambda file: file.update(post_processor=None), id="no post-processor"),
        pytest.param(lambda file: file.update(truncation=TRUNCATION, padding=PADDING), id="truncates and pads"),
    ],
)
def test_ids_do_not_depend_on_the_file_s_other_settings(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    file = json.loads(MISTRAL.read_text("utf-8"))
    change(file)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file), "utf-8")
    tokens = Tokenizer(path, SPECIAL_TOKENS, 16, literal=True).encode(["summit define", "word " * 40])
    assert lists(tokens.ids) == [decoder_ids("summit define", 16), decoder_ids("word " * 40, 16)]


def test_truncation_keeps_the_special_tokens_and_is_counted() -> None:
    tokenizer = Tokenizer(MISTRAL, SPECIAL_TOKENS, 10, literal=True)
    body = sentencepiece_model().encode("word " * 9)
    exact = sentencepiece_model().decode(body[:8])
    tokens = tokenizer.encode(["word " * 9, exact, "word"])
    assert lists(tokens.ids[:2]) == [[1, *body[:8], 2]] * 2
    assert tokens.truncated == [0] and tokens.lengths[1] == 10, "a text of exactly ten tokens is not truncated"
    assert tokens.lengths[0] == 2 + len(body) and tokens.total == 10 + 10 + 3


def test_many_texts_keep_their_order() -> None:
    texts = [f"number {index}" for index in range(CHUNK_TEXTS + 5)]
    ids = lists(_mistral().encode(texts).ids)
    assert len(ids) == len(texts)
    assert ids[0] == decoder_ids("number 0", 99) and ids[-1] == decoder_ids(f"number {CHUNK_TEXTS + 4}", 99)
    assert _mistral().encode([]).ids == []


def test_chunks_have_a_limited_number_of_characters() -> None:
    long = "word " * (CHUNK_CHARACTERS // 10)  # half of a chunk
    assert list(map(len, e5.tokens._chunks(["a", 3 * long, 3 * long, "b"]))) == [1, 1, 1, 1]
    texts = [long, "a", long, "b", "c"]
    assert list(map(len, e5.tokens._chunks(texts))) == [2, 3]
    ids = lists(_mistral().encode(texts).ids)
    assert [ids[1], ids[3], ids[4]] == [decoder_ids(text, 99) for text in "abc"]


@pytest.mark.parametrize("text", TEXTS)
def test_single_and_batch_calls_give_the_same_ids(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    single_thread = _mistral().encode([text])
    monkeypatch.setattr(e5.tokens, "PARALLEL_CHARACTERS", 0)
    batched = _mistral().encode([text])
    assert lists(batched.ids) == lists(single_thread.ids) and batched.truncated == single_thread.truncated


@pytest.mark.parametrize("text", [*TEXTS, "Ünïcödé ñandú", "long " * 700, "a <mask> [MASK]</s>[SEP] <pad><pad> it"])
def test_encoders_match_transformers(text: str, bert_folder: Path, xlm_roberta_folder: Path) -> None:
    for folder, special_tokens in ((bert_folder, ("[CLS]", "[SEP]")), (xlm_roberta_folder, ("<s>", "</s>"))):
        tokens = Tokenizer(folder / "tokenizer.json", special_tokens, 512, literal=False).encode([text])
        assert lists(tokens.ids) == [encoder_ids(folder, text, 512)]
        assert tokens.lengths == [length := len(encoder_ids(folder, text, 9999))]
        assert tokens.truncated == [0] * (length > 512)


def test_broken_and_foreign_tokenizer_files_are_rejected(tmp_path: Path, bert_folder: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text(MISTRAL.read_text("utf-8")[:1000], "utf-8")
    with pytest.raises(WeightsError, match="is not a readable tokenizer"):
        Tokenizer(broken, SPECIAL_TOKENS, 512, literal=True)
    with pytest.raises(WeightsError, match="has no token <s>: it is not the tokenizer of this model"):
        Tokenizer(bert_folder / "tokenizer.json", SPECIAL_TOKENS, 512, literal=True)


_CACHE: list[Tokenizer] = []


def _mistral() -> Tokenizer:
    if not _CACHE:
        _CACHE.append(Tokenizer(MISTRAL, SPECIAL_TOKENS, 4096, literal=True))
    return _CACHE[0]
