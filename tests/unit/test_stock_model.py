"""Architectures that the two loops do not compute: transformers' own vectors, one text at a time, in any batch."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    DebertaV2Config,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    Qwen3Config,
    T5Config,
    ViTConfig,
)

from e5 import Embedder, SettingsError, catalog
from e5.errors import WeightsError
from e5.network.load import load
from e5.network.stock_model import StockModel
from e5.weights.files import LocalWeights
from scripts import merge_weights
from tests import checkpoints
from tests.reference import Reference, Vectors, decoder_ids, relative_l2, stock_tokenizer

TEXTS = ["a", "passage: how tall is the tower?", "the tower is 300 m high. " * 30, "soup", "soup with carrots", "stew"]
MAX_TOKENS = 128
"""Fewer than the third text has."""
SMALL: dict[str, Any] = {"vocab_size": 400, "pad_token_id": 0, **checkpoints.SMALL}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    # Local attention over 8 tokens in one of two layers: most texts are longer.
    "modernbert": ModernBertConfig(
        **SMALL, local_attention=8, global_attn_every_n_layers=2, max_position_embeddings=512,
    ),
    "deberta-v2": DebertaV2Config(
        **SMALL, max_position_embeddings=512, relative_attention=True, position_buckets=16, share_att_key=True,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
        conv_kernel_size=3,
    ),
    "mpnet": MPNetConfig(**{**SMALL, "pad_token_id": 1}, max_position_embeddings=514),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, max_position_embeddings=512),
}  # fmt: skip


def checkpoint(folder: Path, config: PreTrainedConfig, tokenizer: Path, **declaration: object) -> Path:
    """A random model, whose norms and biases are random, too."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    shutil.copy(tokenizer / "tokenizer.json", folder)
    declare(folder, **declaration)
    return folder


def declare(folder: Path, **changes: object) -> None:
    keys = {"name": "my-e5", "prompt": "prefix", "pooling": "mean", "max_tokens": MAX_TOKENS} | changes
    (folder / "e5.json").write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))


def embedder(folder: Path) -> Embedder:
    return Embedder.load(weights=folder, dtype="float32", device="cpu")


@pytest.fixture(params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, bert_folder: Path, tmp_path: Path) -> Path:
    return checkpoint(tmp_path / request.param, ARCHITECTURES[request.param], bert_folder)


def stock_vectors(folder: Path, texts: list[str], model: Any = None) -> dict[str, Vectors]:
    """transformers' own procedure with eager attention, one text in a batch with its mask: the vectors by pooling."""
    model = model or AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    hidden = []
    for text in texts:
        batch = stock_tokenizer(folder)(text, max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        hidden.append(output.last_hidden_state[0].numpy())
    return {
        "mean": np.stack([rows.mean(axis=0) for rows in hidden]),
        "cls": np.stack([rows[0] for rows in hidden]),
        "last": np.stack([rows[-1] for rows in hidden]),
    }


def test_vectors_equal_transformers_own(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    queries = stock_vectors(folder, [f"query: {text}" for text in TEXTS])
    for pooling, want in queries.items():
        declare(folder, pooling=pooling)
        caplog.clear()
        with caplog.at_level(logging.INFO, "e5"):
            ours = embedder(folder)
        assert isinstance(ours.packed.network, StockModel) and ours.model.name == "my-e5" and not ours.uses_task
        messages = [message for message in caplog.messages if "transformers' own module" in message]
        assert messages == [
            f"my-e5: model_type='{folder.name}' is computed by transformers' own module, which is slower"
        ]
        assert relative_l2(ours.embed_queries(TEXTS), want) < 1e-5


def test_a_batch_does_not_change_a_vector(folder: Path) -> None:
    ours = embedder(folder)
    alone = np.concatenate([ours.embed_texts([text]) for text in TEXTS])
    together = ours.embed_texts(TEXTS[::-1] * 3)
    assert relative_l2(together, np.tile(alone[::-1], (3, 1))) < 2e-6
    assert len({len(ids) for ids in ours.tokenizer.encode(TEXTS).ids}) < len(TEXTS), "no two texts are equally long"


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapter_of_another_architecture(use_dora: bool, bert_folder: Path, tmp_path: Path) -> None:
    """In base/ and adapter/, and in the checkpoint that scripts/merge_weights.py writes."""
    base = checkpoint(tmp_path / "own" / "base", ARCHITECTURES["modernbert"], bert_folder)
    (base / "e5.json").rename(tmp_path / "own" / "e5.json")
    adapter, merged = tmp_path / "own" / "adapter", tmp_path / "merged"
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    checkpoints.adapter(adapter, model, target_modules=["Wqkv", "Wo"], use_dora=use_dora)
    clean = AutoModel.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    want = stock_vectors(base, TEXTS, PeftModel.from_pretrained(clean, adapter))["mean"]
    assert relative_l2(want, stock_vectors(base, TEXTS)["mean"]) > 0.01
    ours = embedder(tmp_path / "own")
    assert ours.source == "adapter" and relative_l2(ours.embed_texts(TEXTS), want) < 1e-5
    arguments = ["--weights", str(tmp_path / "own"), "--to", str(merged), "--dtype", "float32", "--device", "cpu"]
    assert merge_weights.main(arguments) == 0
    assert {path.name for path in merged.iterdir()} == {"config.json", "e5.json", "model.safetensors", "tokenizer.json"}
    ours = embedder(merged)
    assert ours.source == "merged" and relative_l2(ours.embed_texts(TEXTS), want) < 1e-5


MISTRAL: dict[str, dict[str, Any]] = {
    "hidden_act='gelu'": {"hidden_act": "gelu"},
    "rope_type='yarn'": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
    "rope_type='linear'": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
}


@pytest.mark.parametrize("setting", MISTRAL)
def test_mistral_s_settings_that_the_decoder_does_not_compute(
    setting: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoints.mistral(tmp_path, sliding_window=16, max_position_embeddings=4096, **MISTRAL[setting])
    with caplog.at_level(logging.WARNING):
        ours = Embedder.load(catalog.FLAGSHIP, folder, dtype="float32", device="cpu")
    assert [message for message in caplog.messages if f"{setting} is computed by transformers' own module" in message]
    assert relative_l2(ours.embed_texts(TEXTS), Reference.load(folder, 4096).embed(TEXTS)) < 1e-5


def test_mistral_with_another_pooling(tmp_path: Path) -> None:
    folder = checkpoints.mistral(tmp_path)
    declare(folder, pooling="mean", special_tokens=["<s>", ""])
    ours = embedder(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for text, got in zip(TEXTS, ours.embed_texts(TEXTS), strict=True):
        with torch.no_grad():
            want = model(torch.tensor([decoder_ids(text, MAX_TOKENS + 1)[:-1]])).last_hidden_state[0].mean(0).numpy()
        assert relative_l2(got[None], want[None]) < 1e-5


# --- errors ----------------------------------------------------------------------------------------------------------


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            T5Config(vocab_size=400, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
            "holds a T5Model, which has no",
        ),
        (
            ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32),
            "holds a ViTModel, which has no hidden state for each token",
        ),
    ],
    ids=["encoder-decoder", "images"],
)
def test_model_that_does_not_embed_texts_is_refused(
    config: PreTrainedConfig, message: str, bert_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        embedder(checkpoint(tmp_path, config, bert_folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no-such-model"}, r"transformers .* cannot build the model .*no-such-model"),
        ({"num_attention_heads": 5}, r"transformers .* cannot build the model"),
        ({"pad_token_id": 10**6}, r"transformers .* cannot build the model"),
        ({"quantization_config": {"quant_method": "gptq"}}, "holds quantized weights"),
        ({"num_hidden_layers": 3}, r"transformers .* cannot build the model"),
        ({"num_hidden_layers": 3, "layer_types": None}, r"lacks layers\.2\..*download it again"),
    ],
)
def test_config_that_cannot_be_used_is_an_error(changes: dict[str, object], message: str, modernbert: Path) -> None:
    configure(modernbert, **changes)
    with pytest.raises(WeightsError, match=message):
        embedder(modernbert)


@pytest.fixture
def modernbert(bert_folder: Path, tmp_path: Path) -> Path:
    return checkpoint(tmp_path, ARCHITECTURES["modernbert"], bert_folder)


def test_no_code_of_the_folder_runs(modernbert: Path) -> None:
    witness = modernbert / "witness"
    (modernbert / "code.py").write_text(f"from pathlib import Path; Path({str(witness)!r}).touch()")
    configure(modernbert, auto_map={"AutoConfig": "code.C", "AutoModel": "code.M"}, model_type="no-such-model")
    with pytest.raises(WeightsError, match="cannot build the model"):
        embedder(modernbert)
    configure(modernbert, model_type="modernbert", attn_implementation="someone/kernels")
    assert relative_l2(embedder(modernbert).embed_texts(TEXTS), stock_vectors(modernbert, TEXTS)["mean"]) < 1e-5
    assert not witness.exists()


def test_float8_is_refused(modernbert: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="float8 is for Mistral models, my-e5 is a modernbert one: leave it out"):
        Embedder.load(weights=modernbert, dtype="float8", device="cpu")
    folder = checkpoints.mistral(tmp_path / "gelu", hidden_act="gelu")
    files = LocalWeights("merged", folder, folder / "tokenizer.json", None)
    with pytest.raises(SettingsError, match="e5-mistral-7b-instruct has hidden_act='gelu': leave it out"):
        load(catalog.get(catalog.FLAGSHIP), files, torch.device("cpu"), torch.float8_e4m3fn)


def test_more_tokens_than_positions_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    """MPNet's positions begin after the padding token's, as RoBERTa's do: 514 are enough for 512 tokens."""
    folder = checkpoint(tmp_path, ARCHITECTURES["mpnet"], bert_folder, max_tokens=513)
    with pytest.raises(SettingsError, match="declares max_tokens=513, but the model has positions for 512 tokens"):
        embedder(folder)
