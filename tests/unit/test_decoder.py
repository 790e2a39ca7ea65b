"""The decoder's configuration, weight layout and float8. tests/unit/test_embedder.py compares its vectors."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion
from transformers import MistralConfig, MistralModel

from e5 import Embedder, SettingsError, catalog
from e5.errors import WeightsError
from e5.network import device, torch_ops
from e5.network import load as loading
from e5.network.decoder import Config, Decoder, unsupported
from e5.network.linear import FLOAT8, Activations, Linear, quantize
from e5.network.load import load
from e5.weights.files import LocalWeights
from e5_cog.repository import ROOT
from tests import checkpoints, flash
from tests.reference import Reference, centred_cosine, relative_l2
from tests.token_ids import pack

CPU = torch.device("cpu")
V4 = {"rope_theta": 5e5, "rope_scaling": None, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def config(folder: Path, **fields: object) -> Config:
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", **fields}), "utf-8")
    return Config.read(folder)


@pytest.mark.parametrize("fields", [{}, V4, {"head_dim": None, "sliding_window": None}, {"head_dim": 32}])
def test_config_fields_and_defaults_equal_transformers(fields: dict[str, Any], tmp_path: Path) -> None:
    got, want = config(tmp_path, **fields), MistralConfig.from_pretrained(tmp_path)
    for name, value in dataclasses.asdict(got).items():
        assert value == (want.rope_parameters[name] if name == "rope_theta" else getattr(want, name)), name


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({}, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": None}, None),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "rope_type='yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
    ],
)
def test_settings_that_the_loop_does_not_compute(config: dict[str, Any], setting: str | None) -> None:
    assert unsupported(config) == setting


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"hidden_size": "wide"}', '{"num_attention_heads": null}'])
def test_an_unreadable_config_is_refused(content: str | None, decoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(decoder_folder, folder)
    path = folder / "base" / "config.json"
    if content is None:
        path.unlink()
    else:
        if content.startswith('{"'):
            content = json.dumps({"model_type": "mistral", **json.loads(content)})
        path.write_text(content, "utf-8")
    base = folder / "base"
    with pytest.raises(WeightsError, match=r"config\.json cannot be read \(.*\): delete it and download it again"):
        load(catalog.get("e5-mistral-7b-instruct"), LocalWeights("merged", base, base, None), CPU, torch.float32)


def test_destinations_are_the_stock_model_s_parameters(tmp_path: Path) -> None:
    small: dict[str, Any] = {**V4, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 100}
    decoder = Decoder(config(tmp_path, **small), CPU, torch.float32)
    stock = MistralModel(MistralConfig.from_pretrained(tmp_path))
    want = {name: parameter.shape for name, parameter in stock.named_parameters()}
    destinations = decoder.destinations()
    assert {name: destination.shape for name, destination in destinations.items()} == want
    for number, destination in enumerate(destinations.values(), 1):
        destination.copy_(torch.full(destination.shape, float(number)))
    for number, destination in enumerate(destinations.values(), 1):
        assert isinstance(destination, torch.Tensor) and bool((destination == number).all()), "destinations overlap"


def test_vectors_equal_the_stock_model_s_with_the_gpu_s_attention(
    decoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: no filler, lengths read from the tensor, rows of no text undefined."""
    calls = flash.install(monkeypatch)
    base = decoder_folder / "base"
    decoder, _ = load(
        catalog.get("e5-mistral-7b-instruct"), LocalWeights("merged", base, base, None), CPU, torch.float32
    )
    stock = MistralModel.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [[1, *range(7, 7 + length), 2] for length in (40, 9, 9, 1, 0)]
    got = decoder.embed(pack(ids))
    with torch.no_grad():
        want = torch.stack([stock(torch.tensor([text])).last_hidden_state[0, -1] for text in ids])
    assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 1e-5
    assert calls == [sum(map(len, ids))] * (len(stock.layers) - 1) + [len(ids)]


def test_loading_a_decoder_does_not_import_transformers() -> None:
    """The import takes longer than the rest of the start."""
    code = "import sys, e5.embedder as e; e.Embedder.load().embed_queries(['x']); print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


# --- float8 -----------------------------------------------------------------------------------------------------------


def test_float8_layer_multiplies_the_rounded_operands() -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(7, 64) * torch.logspace(-3, 3, 7).unsqueeze(1), torch.randn(32, 64)
    weight[3] = 0
    layer = Linear(torch.empty(32, 64, dtype=FLOAT8), torch.float32, torch.empty(1, 32))
    for start, stop in ((0, 20), (20, 32)):
        layer.destination(start, stop).copy_(weight[start:stop])
    values, scale = quantize(rows)
    quantized, weight_scale = Activations(values, scale), layer.scale
    assert weight_scale is not None
    assert torch.equal(values.float().abs().amax(1), torch.full((7,), 448.0))
    want = (values.double() * scale) @ (layer.weight.double() * weight_scale.T).T
    assert torch.allclose(layer(quantized).double(), want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))
    exact = rows.double() @ weight.double().T
    error = torch.linalg.norm(want - exact, dim=1) / torch.linalg.norm(exact, dim=1)
    assert bool((error < 0.06).all()) and bool((error > 0.01).all()), "each row needs its own scale"


def test_float8_is_near_float32_and_never_the_default() -> None:
    texts = ["A bank holds money.", "The river's bank is steep.", "Sparrows are small birds.", "Tea is brewed hot."]
    eight = Embedder.load(dtype="float8", device="cpu")
    assert eight.dtype == "float8"
    assert Embedder.load(device="cpu").dtype in ("float32", "bfloat16")
    full = Embedder.load(dtype="float32", device="cpu")
    got, want = eight.embed_documents(texts), full.embed_documents(texts)
    assert 0.01 < relative_l2(got, want) < 0.1
    assert centred_cosine(got, want) > 0.99
    linear = [
        destination
        for name, destination in eight.packed.network.destinations().items()
        if name.endswith("_proj.weight")
    ]
    assert len(linear) == 3 * 7 and not any(isinstance(destination, torch.Tensor) for destination in linear)
    assert eight.packed.weights_bytes < full.packed.weights_bytes / 2


def test_float8_is_for_decoders(bert_folder: Path) -> None:
    with pytest.raises(SettingsError, match="E5_DTYPE=float8 is for Mistral models, e5-small is a bert one"):
        Embedder.load("e5-small", bert_folder, dtype="float8")


def test_float8_on_a_gpu_without_it_is_refused(decoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    flagship = catalog.get("e5-mistral-7b-instruct")
    with pytest.raises(SettingsError, match="E5_DTYPE=float8: NVIDIA A100 has no float8 arithmetic"):
        loading._allocate(flagship, decoder_folder / "base", torch.device("cuda"), FLOAT8)


@pytest.mark.parametrize(("version", "refused"), [("2.11.0+cu130", True), ("2.12.0+cu130", False)])
def test_float8_on_ada_needs_torch_2_12(
    version: str, refused: bool, decoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40S")
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(device, "_try_float8", lambda device: None)
    if refused:
        with pytest.raises(SettingsError, match=r"torch 2\.11\.0\+cu130 multiplies float8 wrongly on NVIDIA L40S"):
            device.check_float8(torch.device("cuda"))
    else:
        device.check_float8(torch.device("cuda"))


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nwhen calling cublasLtMatmulAlgoGetHeuristic"), "CUBLAS_STATUS_NOT"),
        (torch.full((32, 32), 16.0, dtype=torch.bfloat16), "32 ones times 32 ones is 16.0"),
    ],
    ids=["an error", "a wrong product"],
)
def test_a_device_that_multiplies_float8_wrongly_is_refused(
    product: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(*_: object) -> torch.Tensor:
        if isinstance(product, Exception):
            raise product
        return torch.as_tensor(product)

    device._try_float8(CPU)  # passes
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA RTX 5090")
    monkeypatch.setattr(Linear, "__call__", multiply)
    try_float8 = device._try_float8
    monkeypatch.setattr(device, "_try_float8", lambda device: try_float8(CPU))
    with pytest.raises(SettingsError, match=rf"cannot multiply float8 on NVIDIA RTX 5090 \({reason}.*leave it out"):
        device.check_float8(torch.device("cuda"))


@pytest.mark.parametrize("float8", [False, True])
def test_kernels_that_do_not_compile_are_replaced_by_torch_s_operators(
    float8: bool, decoder_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    decoder = Decoder(Config.read(decoder_folder / "base"), CPU, torch.float32, float8)
    kernels: Any = SimpleNamespace(**vars(torch_ops))
    decoder.ops = kernels
    decoder.compile_kernels()  # calls each operation once, as the layers do
    assert decoder.ops is kernels and not caplog.messages
    monkeypatch.setattr(kernels, "silu_and_mul", broken)
    decoder.compile_kernels()
    assert decoder.ops is torch_ops
    assert "Failed to find C compiler" in caplog.text and "slower" in caplog.text
    assert Decoder(Config.read(decoder_folder / "base"), CPU, torch.float32).ops is torch_ops


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 3e-2), ("float8", 1e-1)])
def test_the_embedded_model_on_a_gpu_is_near_the_stock_model(dtype: str, tolerance: float) -> None:
    pytest.importorskip("mistral_common", reason="mistral-common has the reference's tokenizer")
    base = checkpoints.EMBEDDED / "base"
    texts = [f"text number {index} " * (1 + index * index) for index in range(12)]
    embedder = Embedder.load(weights=base, source="merged", dtype=dtype, device="cuda")
    got = embedder.embed_documents(texts)
    want = Reference.load(base, 4096).embed(texts)
    errors = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    assert errors.max() < tolerance
    assert centred_cosine(got, want) > 1 - tolerance
