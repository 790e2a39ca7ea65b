"""Embedder equals the model cards' procedure, peft and sentence-transformers, on all three architectures.

The reference, `tests/reference.py`, embeds one text at a time with stock eager attention and no code of the package.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import e5.embedder
import e5.network.batches
import e5.prompts
import e5.tokens
import e5.weights.adapter
from e5 import DEFAULT_TASK, Embedder, InputError, SettingsError, normalize, scores
from e5.network.decoder import Decoder
from e5.tokens import TokenIds
from scripts.demo import DOCUMENTS, QUERIES
from tests import checkpoints
from tests.reference import Reference, Vectors, centred_cosine, relative_l2, with_peft
from tests.token_ids import arrays, lists

TEXTS = [
    "a",
    "ab",
    *DOCUMENTS,
    "南瓜的家常做法",
    "😀👩‍👩‍👧 emoji, émigré, \u202eright to left\u202c",
    "\x00 NUL, \x1b escape,\r\n\ttab",
    "the same length as the next one",
    "the same length as the last one",
    "spelled out: </s> <s> <pad><pad> <mask> [SEP] [MASK] [PAD]",
    "word " * 300,
    "over the limit of every model " * 900,
]


@dataclass
class Case:
    """One architecture: the package's embedder and the model card's procedure on the same files."""

    embedder: Embedder
    reference: Reference
    query_form: Callable[[str], str]
    document_form: Callable[[str], str]
    cache: dict[str, Vectors] = field(default_factory=dict)

    def expected(self, texts: list[str]) -> Vectors:
        """The reference's vectors, each computed once."""
        for text in texts:
            if text not in self.cache:
                self.cache[text] = self.reference.embed([text])[0]
        return np.stack([self.cache[text] for text in texts])


def instruct(query: str) -> str:
    return f"Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: {query}"


@pytest.fixture(scope="module")
def decoder(decoder_folder: Path) -> Case:
    embedder = Embedder.load("e5-mistral-7b-instruct", decoder_folder, dtype="float32")
    return Case(embedder, Reference(with_peft(decoder_folder), decoder_folder, 4096), instruct, str)


ENCODERS = {
    "bert": ("e5-small", "bert_folder"),
    "bert with XLM-R's tokenizer": ("multilingual-e5-small", "multilingual_bert_folder"),
    "xlm-roberta": ("multilingual-e5-base", "xlm_roberta_folder"),
    "xlm-roberta instruct": ("multilingual-e5-large-instruct", "xlm_roberta_folder"),
}


@pytest.fixture(scope="module", params=["mistral", *ENCODERS])
def case(request: pytest.FixtureRequest, decoder: Case) -> Case:
    if request.param == "mistral":
        return decoder
    name, fixture = ENCODERS[request.param]
    folder = request.getfixturevalue(fixture)
    embedder, reference = Embedder.load(name, folder, dtype="float32"), Reference.load(folder, 512)
    if name.endswith("instruct"):
        return Case(embedder, reference, instruct, str)
    return Case(embedder, reference, "query: {}".format, "passage: {}".format)


def check(case: Case) -> None:
    """Each vector equals the model card's within 1e-5 in float32."""
    queries = case.embedder.embed_queries(QUERIES)
    assert relative_l2(queries, case.expected([case.query_form(q) for q in QUERIES])) < 1e-5
    documents = case.embedder.embed_documents(TEXTS)
    assert relative_l2(documents, case.expected([case.document_form(t) for t in TEXTS])) < 1e-5


def test_vectors_equal_the_model_cards(case: Case) -> None:
    check(case)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_text_equals_the_model_card(case: Case, data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=6))
    got = case.embedder.embed_documents(texts)
    assert relative_l2(got, case.reference.embed([case.document_form(text) for text in texts])) < 1e-5


@pytest.mark.usefixtures("all_threads")
def test_vector_does_not_depend_on_its_batch(case: Case) -> None:
    alone = {text: case.embedder.embed_documents([text])[0] for text in TEXTS}
    shuffler = random.Random(0)
    for budget in (1, 64, 4096, 100_000):
        case.embedder.max_batch_tokens = budget
        texts = [shuffler.choice(TEXTS) for _ in range(25)]
        got = case.embedder.embed_documents(texts)
        assert relative_l2(got, np.stack([alone[text] for text in texts])) < 1e-5
    case.embedder.max_batch_tokens = 4096


def test_queries_and_documents_in_one_call_keep_their_order(case: Case) -> None:
    together = case.embedder.embed_tokens(case.embedder.tokenize(QUERIES, DOCUMENTS, DEFAULT_TASK))
    apart = np.concatenate([case.embedder.embed_queries(QUERIES), case.embedder.embed_documents(DOCUMENTS)])
    assert relative_l2(together, apart) < 1e-5


# --- mutations: `check` must catch each of these mistakes -------------------------------------------------------------


def _encode(change: Callable[[list[int]], list[int]]) -> Callable[[pytest.MonkeyPatch], None]:
    original = e5.tokens.Tokenizer.encode

    def mutate(patch: pytest.MonkeyPatch) -> None:
        def encode(self: e5.tokens.Tokenizer, texts: list[str]) -> e5.tokens.Tokens:
            tokens = original(self, texts)
            return e5.tokens.Tokens(arrays(map(change, lists(tokens.ids))), tokens.lengths)

        patch.setattr(e5.tokens.Tokenizer, "encode", encode)

    return mutate


def _mean_on_the_decoder(patch: pytest.MonkeyPatch) -> None:
    forward = Embedder.forward

    def mean(self: Embedder, ids: Sequence[TokenIds]) -> torch.Tensor:
        # Attention is causal, so any token's hidden state is that of the last token of a shorter text.
        return torch.cat(
            [forward(self, [text[: n + 1] for n in range(len(text))]).mean(0, keepdim=True) for text in ids]
        )

    patch.setattr(Embedder, "forward", mean)


def _the_token_before_the_last(patch: pytest.MonkeyPatch) -> None:
    last_layer = Decoder._last_layer

    def early(
        self: Decoder, hidden: Any, change: Any, turn: Any, batch: e5.network.batches.PackedBatch
    ) -> torch.Tensor:
        ends = batch.cu_seqlens.clone()
        ends[1:] -= 1
        return last_layer(self, hidden, change, turn, replace(batch, cu_seqlens=ends))

    patch.setattr(Decoder, "_last_layer", early)


def _adapter_skipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(e5.weights.adapter.Adapter, "merged", lambda _, __, base: base)
    patch.setattr(e5.weights.merge, "_check_all_used", lambda *_: None)


def _alpha_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(e5.weights.adapter.Adapter, "scaling", lambda *_: 1.0)


def _order_swapped(patch: pytest.MonkeyPatch) -> None:
    original = e5.network.batches.plan
    patch.setattr(e5.network.batches, "plan", lambda *a: [batch[::-1] for batch in original(*a)])
    pack = e5.network.batches.pack
    patch.setattr(e5.network.batches, "pack", lambda ids, *rest: pack(ids[::-1], *rest))


def _task_on_documents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(e5.prompts, "document_prompt", lambda kind, text: e5.prompts.query_prompt(kind, DEFAULT_TASK, text))


def _no_positions(patch: pytest.MonkeyPatch) -> None:
    pack = e5.network.batches.pack

    def packed(ids: Sequence[TokenIds], padding_idx: int | None, _: bool) -> e5.network.batches.PackedBatch:
        batch = pack(ids, padding_idx)  # positions run on through the row
        batch.position_ids[:] = torch.arange(len(batch.position_ids)) % 500 + (padding_idx or -1) + 1
        return batch

    patch.setattr(e5.network.batches, "pack", packed)


def _texts_see_each_other(patch: pytest.MonkeyPatch) -> None:
    pack = e5.network.batches.pack

    def packed(ids: Sequence[TokenIds], padding_idx: int | None, _: bool) -> e5.network.batches.PackedBatch:
        batch = pack(ids, padding_idx)
        total = len(batch.input_ids)
        runs = (e5.network.batches.Run(0, 1, total),)
        return e5.network.batches.PackedBatch(batch.input_ids, batch.position_ids, batch.cu_seqlens, runs, total)

    patch.setattr(e5.network.batches, "pack", packed)


EVERYWHERE = {
    "no EOS": _encode(lambda ids: ids[:-1]),
    "double EOS": _encode(lambda ids: [*ids, ids[-1]]),
    "no BOS": _encode(lambda ids: ids[1:]),
    "order swapped": _order_swapped,
    "task on documents": _task_on_documents,
    "texts see each other": _texts_see_each_other,
    "positions run on": _no_positions,
}
DECODER_ONLY = {
    "mean pooling on the decoder": _mean_on_the_decoder,
    "the token before the last": _the_token_before_the_last,
    "adapter skipped": _adapter_skipped,
    "alpha ignored": _alpha_ignored,
}


@pytest.mark.parametrize("mutate", EVERYWHERE.values(), ids=EVERYWHERE.keys())
def test_mutations_are_caught(
    mutate: Callable[[pytest.MonkeyPatch], None], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check(case)


@pytest.mark.parametrize("mutate", DECODER_ONLY.values(), ids=DECODER_ONLY.keys())
def test_mutations_of_the_decoder_are_caught(
    mutate: Callable[[pytest.MonkeyPatch], None], decoder: Case, decoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    embedder = Embedder.load("e5-mistral-7b-instruct", decoder_folder, dtype="float32")
    with pytest.raises(AssertionError):
        check(replace(decoder, embedder=embedder))


# --- other engines on the same files ---------------------------------------------------------------------------------


def test_sentence_transformers_gives_the_same_vectors(bert_folder: Path, xlm_roberta_folder: Path) -> None:
    for name, folder in (("e5-small", bert_folder), ("multilingual-e5-base", xlm_roberta_folder)):
        other = _sentence_transformers(folder, "mean")
        embedder = Embedder.load(name, folder, dtype="float32")
        texts = [text for text in TEXTS if "NUL" not in text]
        want = other(["passage: " + text for text in texts])
        assert relative_l2(embedder.embed_documents(texts), want) < 1e-5


def test_sentence_transformers_drops_eos_on_the_merged_decoder(tmp_path: Path) -> None:
    """Its tokenizer adds what the file's post-processor adds, which is no `</s>` in Mistral's; with it: equal."""
    import json

    folder = checkpoints.mistral(tmp_path)
    embedder = Embedder.load("e5-mistral-7b-instruct", folder, dtype="float32")
    assert embedder.source == "merged"
    ours = embedder.embed_documents(TEXTS[:9])
    assert relative_l2(_sentence_transformers(folder, "lasttoken")(TEXTS[:9]), ours) > 0.1
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    file["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    file["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (folder / "tokenizer.json").write_text(json.dumps(file), "utf-8")
    assert relative_l2(_sentence_transformers(folder, "lasttoken")(TEXTS[:9]), ours) < 1e-5


def _sentence_transformers(folder: Path, pooling: str) -> Callable[[list[str]], Vectors]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(folder), model_kwargs={"dtype": torch.float32})
    transformer.max_seq_length = 512
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling)], device="cpu")
    return lambda texts: model.encode(texts, batch_size=4, show_progress_bar=False)


# --- the embedded model, end to end ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder.load(dtype="float32")


def test_embedded_model_equals_the_model_card_with_peft(tiny: Embedder) -> None:
    reference = Reference(with_peft(checkpoints.EMBEDDED), checkpoints.EMBEDDED, 4096)
    texts = TEXTS[:-1]
    want, got = reference.embed(texts), tiny.embed_documents(texts)
    assert relative_l2(got, want) < 1e-5 and centred_cosine(got, want) > 0.99999


def test_bfloat16_stays_close_to_float32(tiny: Embedder) -> None:
    want = tiny.embed_documents(TEXTS)
    got = Embedder.load(dtype="bfloat16").embed_documents(TEXTS)
    assert relative_l2(got, want) < 0.03 and centred_cosine(got, want) > 0.9995


@pytest.mark.usefixtures("all_threads")
def test_batch_changes_a_bfloat16_vector_by_rounding_only() -> None:
    """Matrix products of other sizes round differently. bfloat16 has 8 significant bits: 2^-9 = .002 a step."""
    half = Embedder.load(dtype="bfloat16")
    alone = half.embed_documents(DOCUMENTS[:1])
    among = half.embed_documents([DOCUMENTS[0]] * 30 + TEXTS)[:1]
    assert relative_l2(among, alone) < 0.02


def test_normalize_and_scores_of_the_library(tiny: Embedder) -> None:
    raw, unit = tiny.embed_documents(DOCUMENTS), tiny.embed_documents(DOCUMENTS, normalize=True)
    assert raw.dtype == unit.dtype == np.float32 and raw.shape == (2, 256)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01, "not normalized unless asked"
    np.testing.assert_array_equal(normalize(raw), unit)
    np.testing.assert_allclose(scores(raw, raw), scores(unit, unit), atol=1e-4)


def test_task_changes_a_query_and_an_empty_task_leaves_it_bare(tiny: Embedder) -> None:
    web, other, bare = (tiny.embed_queries(QUERIES[:1], task=task) for task in (DEFAULT_TASK, "Find a rhyme", ""))
    # Training made the embedded model nearly ignore instructions, but it reads them: rounding is below 1e-6.
    assert relative_l2(other, web) > 0.01
    assert relative_l2(bare, tiny.embed_documents(QUERIES[:1])) < 1e-6


def test_bad_texts_are_rejected_and_the_next_call_works(tiny: Embedder) -> None:
    with pytest.raises(InputError, match=r"`queries\[1\]` is empty"):
        tiny.embed_queries(["a", ""])
    with pytest.raises(InputError, match="`documents` is of type str"):
        tiny.embed_documents("one text")
    with pytest.raises(InputError, match="`task` is null"):
        tiny.embed_queries(["a"], task=None)  # type: ignore[arg-type]
    assert tiny.embed_documents(["a"]).shape == (1, 256)
    assert tiny.embed_documents([]).shape == (0, 256)


@pytest.mark.parametrize("count", [4, 5, 69])
def test_parts_for_a_gpu_give_the_same_vectors(
    tiny: Embedder, count: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{index} and {'more ' * (index % 7)}" for index in range(count)]
    texts[-1] = "very " * 5000
    want = tiny.embed_documents(texts)
    caplog.clear()
    monkeypatch.setattr(e5.embedder, "PART", 64)  # the first one has 4
    monkeypatch.setattr(tiny, "device", "cuda")
    got = tiny.embed_documents(texts)
    assert relative_l2(got, want) < 1e-5
    assert caplog.messages == [f"1 of {count} texts were cut to 4096 tokens"]


def test_next_part_is_tokenized_while_one_is_computed(tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e5.embedder, "PART", 32)
    monkeypatch.setattr(tiny, "device", "cuda")
    tokenized = [threading.Event() for _ in range(3)]
    calls = iter(tokenized)
    encode, forward = Embedder._encode, Embedder.forward
    computed: list[int] = []

    def tokenize_and_signal(self: Embedder, *inputs: Any) -> e5.tokens.Tokens:
        tokens = encode(self, *inputs)
        next(calls).set()
        return tokens

    def wait_for_next_part(self: Embedder, ids: Any) -> torch.Tensor:
        part = len(computed)
        computed.append(len(ids))
        assert tokenized[min(part + 1, 2)].wait(20), "the next part is not tokenized yet"
        return forward(self, ids)

    monkeypatch.setattr(Embedder, "_encode", tokenize_and_signal)
    monkeypatch.setattr(Embedder, "forward", wait_for_next_part)
    assert len(tiny.embed_documents([f"text {index}" for index in range(40)])) == 40
    assert computed == [2, 32, 6]


def test_error_in_a_later_part_reaches_the_caller(tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e5.embedder, "PART", 32)
    monkeypatch.setattr(tiny, "device", "cuda")
    calls = iter(range(9))
    encode = Embedder._encode

    def fails(self: Embedder, *inputs: Any) -> e5.tokens.Tokens:
        if next(calls) == 2:
            raise InputError("of the third part")
        return encode(self, *inputs)

    monkeypatch.setattr(Embedder, "_encode", fails)
    with pytest.raises(InputError, match="of the third part"):
        tiny.embed_documents(["text"] * 99)


def test_truncation_is_counted_and_logged(tiny: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    tokens = tiny.tokenize(["short"], ["word " * 5000], DEFAULT_TASK)
    assert tokens.truncated == [1] and tokens.lengths == [23, 5003] and len(tokens.ids[1]) == 4096
    tiny.embed_documents(["short"])
    assert not caplog.messages
    tiny.embed_documents(["word " * 5000, "short"])
    assert caplog.messages == ["1 of 2 texts were cut to 4096 tokens"]


def test_task_that_leaves_the_query_no_room_is_rejected(tiny: Embedder) -> None:
    assert tiny.embed_queries(["a"], task="find " * 1900).shape == (1, 256)
    with pytest.raises(InputError, match=r"`task` takes 4096 tokens or more of the 4096 that it shares with the query"):
        tiny.embed_queries(["a"], task="find " * 100_000)


def test_nan_and_infinity_are_errors(tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = tiny.packed.embed

    def broken(batch: e5.network.batches.PackedBatch) -> torch.Tensor:
        vectors = embed(batch).clone()
        vectors[batch.cu_seqlens.diff() == 4, 7] = float("inf")  # float16 overflow
        return vectors

    monkeypatch.setattr(tiny.packed, "embed", broken)
    with pytest.raises(FloatingPointError, match=r"NaN or infinity for text 2 of 3.*E5_DTYPE=bfloat16 or float32"):
        tiny.embed_documents(["one two three four", "one two", "one"])
    assert tiny.embed_documents(["one"]).shape == (1, 256)


def test_scores_take_arrays_of_any_layout(tiny: Embedder) -> None:
    vectors = tiny.embed_documents(DOCUMENTS)
    read_only = np.frombuffer(vectors.tobytes(), "<f4").reshape(vectors.shape)
    want = scores(vectors, vectors)
    np.testing.assert_array_equal(scores(read_only, vectors), want)
    np.testing.assert_array_equal(scores(vectors[::-1], vectors), want[::-1])
    np.testing.assert_allclose(scores(vectors.astype(">f4"), vectors.astype(np.float64)), want, atol=1e-4)
    assert want.max() <= 100


def test_progress_bar_is_shown_on_request(tiny: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.embed_documents(DOCUMENTS)
    assert capsys.readouterr().err == "", "no terminal, no bar"
    tiny.embed_documents(DOCUMENTS, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_load_takes_names_folders_and_settings(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("E5_MODEL", "e5-small")
    monkeypatch.setenv("E5_WEIGHTS", str(bert_folder))
    monkeypatch.setenv("E5_DTYPE", "float32")
    monkeypatch.setenv("E5_MAX_BATCH_TOKENS", "99")
    small = Embedder.load()
    assert (small.model.name, small.dtype, small.max_batch_tokens, small.dimensions) == ("e5-small", "float32", 99, 32)
    tiny = Embedder.load("e5-mistral-tiny")
    assert (tiny.model.name, tiny.dtype, tiny.source) == ("e5-mistral-tiny", "float32", "adapter")
    with pytest.raises(SettingsError, match="is not a folder"):
        Embedder.load("e5-small", tmp_path / "nowhere")
    assert set(tiny.phases) == {"locate", "load", "merge", "tokenizer"}
