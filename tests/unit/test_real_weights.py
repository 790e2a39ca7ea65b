"""Vectors, scores and a published figure on a real E5: multilingual-e5-small, its weights rounded to 4 bits.

The reference code, sentence-transformers and this package read the same folder, so the rounding cancels out.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from e5 import Embedder, scores
from e5.network import pooling
from tests import real_e5
from tests.languages import ARTICLE_1
from tests.page.examples import page_example
from tests.reference import Reference, Vectors, relative_l2

LENGTHS = [1, 2, 3, 5, 8, 16, 32, 64, 128, 700]
"""Tokens of a text, without prompt and special tokens."""
TEXTS = [*list(ARTICLE_1.values())[::2], *("a" + " the" * (length - 1) for length in LENGTHS)]
SHORT = [text[:40] for text in list(ARTICLE_1.values())[::3]]
"""For bfloat16, which is 20 times slower than float32 on a CPU without instructions for it."""
PROMPTS = {"embed_queries": "query: ", "embed_documents": "passage: "}

_, EXAMPLE = page_example("Across languages")
QUERIES = ["how much protein should a female eat", "南瓜的家常做法"]
DOCUMENTS = [
    EXAMPLE[1],
    # The model card's passage has a second recipe.
    EXAMPLE[0]
    + " 2.香葱炒南瓜 原料:南瓜1只 调料:香葱、蒜末、橄榄油、盐 做法: 1、将南瓜去皮,切成片 2、油锅8成热后,将蒜末放入爆香 "
    "3、爆香后,将南瓜片放入,翻炒 4、在翻炒的同时,可以不时地往锅里加水,但不要太多 5、放入盐,炒匀 "
    "6、南瓜差不多软和绵了之后,就可以关火 7、撒入香葱,即可出锅",
]
SCORES = [[93.2054, 76.3608], [74.9358, 91.4403]]

BFLOAT16_RELATIVE_L2, BFLOAT16_COSINE = 0.02, 0.9999
"""Bounds against float32. An EPYC without bfloat16 instructions gives .0059 and .99998. The smallest of the mistakes
below, a missing prompt, gives .072 and .9974."""


pytestmark = pytest.mark.usefixtures("all_threads")


@pytest.fixture(scope="module")
def reference(real_e5_folder: Path) -> Reference:
    return Reference.load(real_e5_folder, 512)


@pytest.fixture(scope="module")
def embedded(real_e5_model: Embedder) -> dict[str, Vectors]:
    """This package's vectors of TEXTS, by method."""
    return {method: getattr(real_e5_model, method)(TEXTS) for method in PROMPTS}


@pytest.mark.parametrize("method", PROMPTS)
def test_vectors_equal_stock_transformers_one_text_at_a_time(
    embedded: dict[str, Vectors], reference: Reference, method: str
) -> None:
    assert relative_l2(embedded[method], reference.embed([PROMPTS[method] + text for text in TEXTS])) < 1e-5


def test_texts_as_given_equal_stock_transformers(real_e5_model: Embedder, reference: Reference) -> None:
    assert relative_l2(real_e5_model.embed_texts(SHORT), reference.embed(SHORT)) < 1e-5


def test_order_and_batch_size_do_not_change_a_vector(
    real_e5_model: Embedder, embedded: dict[str, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = slice(0, -1)  # without the longest, to save time
    monkeypatch.setattr(real_e5_model, "max_batch_tokens", 300)
    backwards = real_e5_model.embed_documents(TEXTS[few][::-1])
    assert relative_l2(backwards[::-1], embedded["embed_documents"][few]) < 1e-5


def test_sentence_transformers_gives_the_same_vectors(embedded: dict[str, Vectors], real_e5_folder: Path) -> None:
    transformer = Transformer(str(real_e5_folder), model_kwargs={"dtype": torch.float32})
    transformer.max_seq_length = 512
    other = SentenceTransformer(modules=[transformer, Pooling(384, "mean"), Normalize()], device="cpu")
    for method, texts in (("embed_queries", slice(0, 20)), ("embed_documents", slice(20, None))):
        theirs = other.encode([PROMPTS[method] + text for text in TEXTS[texts]], batch_size=8, show_progress_bar=False)
        assert relative_l2(unit(embedded[method][texts]), theirs) < 1e-5


def test_the_model_cards_example_gives_the_known_scores(real_e5_model: Embedder, reference: Reference) -> None:
    got = scores(real_e5_model.embed_queries(QUERIES), real_e5_model.embed_documents(DOCUMENTS))
    np.testing.assert_allclose(got, SCORES, atol=0.01)
    queries = reference.embed([f"query: {text}" for text in QUERIES])
    documents = reference.embed([f"passage: {text}" for text in DOCUMENTS])
    np.testing.assert_allclose(100 * unit(queries) @ unit(documents).T, SCORES, atol=0.01)


def test_bfloat16_stays_within_its_bounds(real_e5_model: Embedder, real_e5_folder: Path) -> None:
    want = real_e5_model.embed_documents(SHORT)
    got = Embedder.load(real_e5.MODEL, real_e5_folder, dtype="bfloat16", device="cpu").embed_documents(SHORT)
    print(f"\nbfloat16: distance {relative_l2(got, want):.4f} or less, cosine {cosines(got, want).min():.6f} or more")
    assert relative_l2(got, want) < BFLOAT16_RELATIVE_L2
    assert cosines(got, want).min() > BFLOAT16_COSINE


def first_token(hidden: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """hidden [T, D], cu_seqlens [N + 1] → float32 [N, D]."""
    return hidden[cu_seqlens[:-1].long()].float()


@pytest.mark.parametrize("mistake", ["no prompt", "the other prompt", "CLS pooling", "last-token pooling"])
def test_the_bounds_of_bfloat16_catch_a_mistake(
    real_e5_model: Embedder, real_e5_folder: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake exceeds both bounds on every text, not only on the worst one.

    CLS and last-token pooling give the same figures: this model's states of `<s>` and `</s>` differ by 2e-5 only.
    """
    want = real_e5_model.embed_documents(SHORT)
    wrong = real_e5_model
    if "pooling" in mistake:
        pool = first_token if mistake == "CLS pooling" else pooling.last_token
        monkeypatch.setitem(pooling.POOLINGS, "mean", pool)
        wrong = Embedder.load(real_e5.MODEL, real_e5_folder, dtype="float32", device="cpu")
    prompt = {"no prompt": "", "the other prompt": "query: "}.get(mistake, "passage: ")
    got = wrong.embed_texts(SHORT, prompt)
    distances = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    print(f"\n{mistake}: distance {distances.min():.4f} or more, cosine {cosines(got, want).max():.6f} or less")
    assert distances.min() > BFLOAT16_RELATIVE_L2
    assert cosines(got, want).max() < BFLOAT16_COSINE


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def cosines(left: Vectors, right: Vectors) -> Vectors:
    return np.asarray((unit(left) * unit(right)).sum(axis=1), np.float32)
