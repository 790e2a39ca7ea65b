"""The candidates' forward pass gives the hidden states of stock transformers, for all three kinds of network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from e5 import Embedder
from e5.network.decoder import Decoder
from e5.network.encoder import Encoder
from e5.network.stock_model import StockModel
from evaluation.server_check import forward
from tests.reference import Reference, with_peft

TEXTS = [(1, 17, 300, 5, 2), (1, 17, 300, 8), (17,)]


@pytest.mark.parametrize(
    ("kind", "pooling", "network"),
    [("decoder", "last", Decoder), ("decoder", "mean", StockModel), ("bert", "mean", Encoder)],
)
def test_hidden_states(
    kind: str, pooling: str, network: type, decoder_folder: Path, bert_folder: Path, tmp_path: Path
) -> None:
    source = decoder_folder if kind == "decoder" else bert_folder
    for path in source.iterdir():
        (tmp_path / path.name).symlink_to(path)
    facts = {"name": "own", "prompt": "prefix", "pooling": pooling, "max_tokens": 64, "special_tokens": ["", ""]}
    (tmp_path / "e5.json").write_text(json.dumps(facts), "utf-8")
    embedder = Embedder.load(weights=tmp_path, dtype="float32", device="cpu")
    assert type(embedder.packed.network) is network
    reference = Reference(with_peft(source), source, 64) if kind == "decoder" else Reference.load(source, 64)
    states = forward.hidden_states(embedder, TEXTS)
    for ids in TEXTS:
        with torch.no_grad():
            expected = reference._hidden(list(ids)).numpy()
        np.testing.assert_allclose(states[ids], expected, rtol=0, atol=2e-5)
    plan = {(): (list(TEXTS[0]), "last"), ("a",): (list(TEXTS[0]), "mean"), ("b",): (list(TEXTS[1]), "cls")}
    vectors = forward.vectors(embedder, plan, embedder.model.pooling)  # type: ignore[arg-type]
    np.testing.assert_allclose(vectors[()], states[TEXTS[0]][-1], rtol=0, atol=2e-5)
    np.testing.assert_allclose(vectors[("a",)], states[TEXTS[0]].mean(axis=0), rtol=0, atol=2e-5)
    np.testing.assert_allclose(vectors[("b",)], states[TEXTS[1]][0], rtol=0, atol=2e-5)
