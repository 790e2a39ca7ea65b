"""The package equals the embedded model's golden file, which reference code wrote (`tests/golden.py`)."""

import json
from typing import Any

import numpy as np
import pytest

from e5 import Embedder, scores
from tests import golden
from tests.reference import centred_cosine, relative_l2


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(golden.FILE.read_text(encoding="utf-8"))
    return content


def test_golden_file_belongs_to_these_weights_and_texts(expected: dict[str, Any]) -> None:
    assert expected["weights"] == golden.checksums(), "the weights have changed: run python -m tests.golden"
    assert [(query["task"], query["query"]) for query in expected["queries"]] == list(golden.QUERIES)
    assert expected["documents"] == list(golden.DOCUMENTS)


def test_vectors_and_scores(expected: dict[str, Any]) -> None:
    tiny = Embedder.load(dtype="float32")
    queries = np.concatenate([tiny.embed_queries([query], task=task) for task, query in golden.QUERIES])
    documents = tiny.embed_documents(golden.DOCUMENTS)
    vectors = np.concatenate((queries, documents))
    first = np.array(expected["first_dimensions"], np.float32)
    assert relative_l2(vectors[:, :8], first) < 1e-4 and centred_cosine(vectors[:, :8], first) > 0.999999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), expected["lengths"], rtol=1e-5)
    np.testing.assert_allclose(scores(queries, documents), expected["scores"], atol=2e-3)
