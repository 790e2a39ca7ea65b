"""The encoder's loop against stock transformers, and stock transformers where the loop does not compute a setting."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from e5 import Embedder
from e5.errors import WeightsError
from e5.network import torch_ops
from e5.network.encoder import Config, Encoder, unsupported
from e5.network.stock_model import StockModel
from e5_cog.repository import ROOT
from tests.reference import Reference, relative_l2
from tests.token_ids import pack

MODELS = {"bert": "e5-small", "xlm_roberta": "multilingual-e5-base"}
TEXTS = ["a", "passage: how tall is the tower?", "the tower is 300 m high. " * 30, "soup", "soup with carrots"]
NETWORKS = {None: Encoder, "relu": StockModel, "gelu_new": StockModel}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose biases and norms are random, too: transformers initializes them with zeros and ones."""
    source: Path = request.getfixturevalue(f"{request.param}_folder")
    copy: Path = shutil.copytree(source, tmp_path / request.param)
    torch.manual_seed(0)
    tensors = load_file(copy / "model.safetensors")
    noisy = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in tensors.items()}
    save_file(noisy, copy / "model.safetensors", {"format": "pt"})
    return copy


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


@pytest.mark.parametrize("activation", NETWORKS)
def test_vectors_equal_stock_transformers(
    folder: Path, activation: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if activation is not None:
        configure(folder, hidden_act=activation)
    with caplog.at_level(logging.WARNING):
        embedder = Embedder.load(MODELS[folder.name], folder, dtype="float32", device="cpu")
    assert type(embedder.packed.network) is NETWORKS[activation]
    said = [message for message in caplog.messages if "transformers' own module" in message]
    assert len(said) == (activation is not None) and all(f"hidden_act='{activation}'" in message for message in said)
    assert relative_l2(embedder.embed_texts(TEXTS), Reference.load(folder, 512).embed(TEXTS)) < 1e-5


def test_every_weight_has_an_effect(folder: Path) -> None:
    """A bias, norm or matrix that the loop forgets would leave the vectors as they are."""
    tensors = load_file(folder / "model.safetensors")
    before = Embedder.load(MODELS[folder.name], folder, dtype="float32", device="cpu").embed_texts(TEXTS)
    for name in sorted(name for name in tensors if not name.startswith("pooler.") and ".layer.1." not in name):
        changed = dict(tensors)
        # Row 0 of the token types is the only one in use. The key's bias adds the same to all scores of a query.
        changed[name] = (
            tensors[name] * 2 if name.endswith("key.bias") else tensors[name] + 0.1 * torch.rand_like(tensors[name])
        )
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        after = Embedder.load(MODELS[folder.name], folder, dtype="float32", device="cpu").embed_texts(TEXTS)
        assert (relative_l2(after, before) > 1e-4) is not name.endswith("key.bias"), name


@pytest.mark.kernels
def test_fused_kernels_give_the_same_vectors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("e5.network.kernels", reason="Triton is for Linux", exc_type=ImportError)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed = Embedder.load(MODELS[folder.name], folder, dtype="float32", device=device).packed
    vectors = []
    for ops in (torch_ops, kernels):
        monkeypatch.setattr(packed.network, "ops", ops)
        vectors.append(packed.embed(pack([[2, 9, 40, 3], [2, 7, 3]], packed.padding_idx)).cpu())
    assert relative_l2(vectors[1].numpy(), vectors[0].numpy()) < 1e-5


def test_kernels_that_do_not_compile_are_replaced_by_torch_s_operators(
    bert_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    encoder = Encoder(Config.read(bert_folder), torch.device("cpu"), torch.float32, "mean")
    kernels: Any = SimpleNamespace(**vars(torch_ops) | {"add_layer_norm": broken})
    encoder.ops = kernels
    encoder.compile_kernels()
    assert encoder.ops is torch_ops and "Failed to find C compiler" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 3e-2)])
def test_vectors_on_a_gpu_are_near_stock_transformers(folder: Path, dtype: str, tolerance: float) -> None:
    got = Embedder.load(MODELS[folder.name], folder, dtype=dtype, device="cuda").embed_texts(TEXTS)
    assert relative_l2(got, Reference.load(folder, 512).embed(TEXTS)) < tolerance


def test_loading_an_encoder_does_not_import_transformers(folder: Path) -> None:
    """The import takes longer than the rest of the start."""
    code = (
        "import sys; from e5 import Embedder; from pathlib import Path\n"
        f"Embedder.load({MODELS[folder.name]!r}, Path({str(folder)!r}), device='cpu').embed_queries(['x'])\n"
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({}, None),
        ({"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}, None),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ],
)
def test_settings_that_the_loop_does_not_compute(config: dict[str, object], setting: str | None) -> None:
    assert unsupported(config) == setting


@pytest.mark.parametrize("changes", [{"hidden_size": "many"}, {"num_attention_heads": 5}, {"num_attention_heads": 0}])
def test_unusable_configuration_is_an_error(folder: Path, changes: dict[str, object]) -> None:
    configure(folder, **changes)
    with pytest.raises(WeightsError, match=r"config\.json"):
        Config.read(folder)


def test_missing_fields_are_those_of_transformers(tmp_path: Path) -> None:
    for model_type in ("bert", "xlm-roberta"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        ours = Config.read(tmp_path)
        from transformers import AutoConfig

        stock = AutoConfig.from_pretrained(tmp_path)
        assert {name: getattr(stock, name) for name in vars(ours)} == vars(ours)


@pytest.mark.usefixtures("all_threads")
def test_a_batch_does_not_change_a_vector(folder: Path) -> None:
    embedder = Embedder.load(MODELS[folder.name], folder, dtype="float32", device="cpu")
    alone = np.concatenate([embedder.embed_texts([text]) for text in TEXTS])
    assert relative_l2(embedder.embed_texts(TEXTS), alone) < 1e-6
