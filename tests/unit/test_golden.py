"""The package against the golden file of the embedded model, which reference code wrote (`tests/golden.py`)."""

import json
from typing import Any

import numpy as np
import pytest

from e5 import Embedder, scores
from tests import golden
from tests.reference import centred_cosine, relative_l2


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(golden.FILE.read_text(encoding="utf-8"))
    return found


def test_it_belongs_to_these_weights_and_texts(known: dict[str, Any]) -> None:
    assert known["weights"] == golden.checksums(), "the weights are others: run python -m tests.golden"
    assert [(one["task"], one["query"]) for one in known["queries"]] == list(golden.QUERIES)
    assert known["documents"] == list(golden.DOCUMENTS)


def test_vectors_and_scores(known: dict[str, Any]) -> None:
    tiny = Embedder.load(dtype="float32")
    queries = np.concatenate([tiny.embed_queries([query], task=task) for task, query in golden.QUERIES])
    documents = tiny.embed_documents(golden.DOCUMENTS)
    vectors = np.concatenate((queries, documents))
    first = np.array(known["first_dimensions"], np.float32)
    assert relative_l2(vectors[:, :8], first) < 1e-4 and centred_cosine(vectors[:, :8], first) > 0.999999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), known["lengths"], rtol=1e-5)
    np.testing.assert_allclose(scores(queries, documents), known["scores"], atol=2e-3)
