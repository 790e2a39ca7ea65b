"""Adapters beyond plain LoRA: bitwise peft's own merge in float64, the same in the written checkpoint, clear errors."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig
from peft import get_peft_model as wrap
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForMaskedLM

from e5 import catalog
from e5.errors import WeightsError
from e5.network.load import load
from e5.weights import patterns
from e5.weights.files import LocalWeights
from e5.weights.merge import merged_tensors, write_merged
from tests import checkpoints

E5_SMALL = catalog.get("e5-small")
CPU = torch.device("cpu")
QUERY = "encoder.layer.0.attention.self.query"
TARGETS = ["query", "value", "output.dense"]


@pytest.fixture
def folder(bert_folder: Path, tmp_path: Path) -> Path:
    """A folder with base/, whose biases and norms are random, too."""
    base = shutil.copytree(bert_folder, tmp_path / "base")
    torch.manual_seed(0)
    tensors = load_file(base / "model.safetensors")
    noisy = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in tensors.items()}
    save_file(noisy, base / "model.safetensors", {"format": "pt"})
    return tmp_path


def adapt(folder: Path, config: PeftConfig, base: Any = None) -> Path:
    """Write adapter/ with random values for all that peft would train."""
    model = wrap(base or AutoModel.from_pretrained(folder / "base", dtype=torch.float32), config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def files(folder: Path) -> LocalWeights:
    base = folder / "base"
    return LocalWeights("adapter", base, base / "tokenizer.json", folder / "adapter")


def ours(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype).clone() for name, tensor in merged_tensors(files(folder), CPU)}


def peft_s(folder: Path) -> dict[str, torch.Tensor]:
    base = AutoModel.from_pretrained(folder / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, folder / "adapter").double().merge_and_unload()
    return {name: parameter.data.float() for name, parameter in merged.named_parameters() if "pooler" not in name}


ADAPTERS: dict[str, PeftConfig] = {
    "DoRA": LoraConfig(r=4, target_modules=TARGETS, use_dora=True),
    "DoRA, a pattern and ranks": LoraConfig(
        r=4, target_modules=r".*layer\.[01]\..*(query|key)", rank_pattern={"key": 2}, alpha_pattern={"layer.1.*": 3},
        use_dora=True,
    ),
    "rsLoRA, biases of adapted layers": LoraConfig(r=4, target_modules=TARGETS, use_rslora=True, bias="lora_only"),
    "all biases": LoraConfig(r=4, target_modules=TARGETS, bias="all"),
    "biases of B": LoraConfig(r=4, target_modules=TARGETS, lora_bias=True, bias="all"),
    "saved modules": LoraConfig(r=4, target_modules=["query"], modules_to_save=["LayerNorm", "layer.1.intermediate"]),
    "all linear layers": LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "one layer": LoraConfig(r=4, target_modules=TARGETS, bias="all", layers_to_transform=[1], layers_pattern="layer"),
    "LoHa": LoHaConfig(r=4, alpha=3, target_modules=TARGETS, rank_pattern={"value": 2}),
    "LoKr": LoKrConfig(r=2, target_modules=TARGETS, decompose_both=True, decompose_factor=4),
    "IA3": IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
}  # fmt: skip


@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_merged_weights_equal_peft_s_bitwise(
    config: PeftConfig, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapt(folder, config)
    plain = load_file(folder / "base" / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        got = ours(folder)
    want = peft_s(folder)
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert any(not torch.equal(got[name], plain[name]) for name in got), "the adapter changes nothing"
    assert len([message for message in caplog.messages if "is merged by peft, which is slower" in message]) == 1


def test_merge_runs_in_the_fast_loop_and_in_the_merged_checkpoint(folder: Path, tmp_path: Path) -> None:
    adapt(folder, ADAPTERS["all biases"])
    with checkpoints.plain_weights():
        model, _ = load(E5_SMALL, files(folder), CPU, torch.float32)
    want = checkpoints.parameters(model)
    assert type(model.network).__name__ == "Encoder"
    target = write_merged(files(folder), tmp_path / "merged", torch.float32, CPU)
    written = load_file(target / "model.safetensors")
    assert written.keys() == ours(folder).keys() == want.keys()
    assert all(torch.equal(written[name], want[name]) for name in want)


def test_adapter_of_a_model_with_a_head(folder: Path) -> None:
    """Its names and patterns have the prefix `bert.`; what it has for the head is not used."""
    with_head = BertForMaskedLM.from_pretrained(folder / "base", dtype=torch.float32)
    config = LoraConfig(
        r=4, target_modules=r"bert\..*query|cls\..*dense", use_dora=True, rank_pattern={r"bert\.encoder\.layer\.1.*": 2}
    )
    adapt(folder, config, with_head)
    clean = BertForMaskedLM.from_pretrained(folder / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(clean, folder / "adapter").double().merge_and_unload().bert
    got = ours(folder)
    for name, parameter in merged.named_parameters():
        assert torch.equal(got[name], parameter.data.float()), name


def test_plain_lora_needs_no_peft(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Other starting values don't change the base, and an encoder's pooler is not used."""
    adapt(folder, LoraConfig(r=4, target_modules=[*TARGETS, "dense"], init_lora_weights="orthogonal"))
    want = peft_s(folder)
    monkeypatch.setitem(sys.modules, "peft", None)
    got = ours(folder)
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_once(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dora")
    shutil.copytree(bert_folder, folder / "base")
    adapt(folder, ADAPTERS["DoRA"])
    return folder


@pytest.fixture
def dora(made_once: Path, tmp_path: Path) -> Path:
    """A folder with base/ and adapter/ that a test may change."""
    return shutil.copytree(made_once, tmp_path / "dora")


def configure(folder: Path, **changes: object) -> None:
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        ours(folder)
    assert str(folder / "adapter") in str(caught.value) and len(str(caught.value)) < 900
    return str(caught.value)


def test_missing_peft_is_an_error_that_says_what_to_install(dora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    error = refusal(dora)
    assert "asks for use_dora=True, which peft merges" in error and 'pip install "peft>=0.19,<1"' in error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("megatron_config", {"a": 1}),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["weight"]),
        ("use_qalora", True),
        ("peft_type", "XLORA"),
        ("a_field_of_the_future", 3),
    ],
)
def test_setting_that_changes_the_base_or_is_unknown_is_refused_by_name(field: str, value: object, dora: Path) -> None:
    configure(dora, **{field: value})
    error = refusal(dora)
    assert f"asks for {field}={value!r}" in error and "cannot be merged into the base" in error


def test_prompt_tuning_is_refused(folder: Path) -> None:
    adapt(folder, PrefixTuningConfig(num_virtual_tokens=2, task_type="FEATURE_EXTRACTION"))
    configure(folder, target_modules=["query"])
    assert "asks for peft_type='PREFIX_TUNING'" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": False, "bias": "all"}, "lacks a tensor"),
        ({"modules_to_save": ["LayerNorm"]}, "lacks a tensor"),
        ({"target_modules": ["query"]}, "has a tensor"),
        ({"r": 100_000_000}, "for base and settings it is [100000000, 32]"),
        ({"r": 0}, "has no r"),
        ({"rank_pattern": {"query": 3}}, "for base and settings it is [3, 32]"),
        ({"rank_pattern": {"query": -1}}, "cannot merge"),
        ({"target_modules": ["no_such_module"]}, "cannot merge"),
        ({"target_modules": ["encoder.layer.0"]}, "cannot merge"),
        ({"modules_to_save": "LayerNorm"}, "has modules_to_save="),
        ({"use_dora": "yes"}, "has use_dora="),
        ({"bias": "some"}, "cannot merge"),
    ],
)
def test_settings_that_do_not_fit_are_an_error(changes: dict[str, object], message: str, dora: Path) -> None:
    configure(dora, **changes)
    assert message in refusal(dora)


@pytest.mark.parametrize("field", ["target_modules", "rank_pattern"])
def test_peft_never_gets_a_pattern_that_may_run_forever(
    field: str, dora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.5)
    pattern = r"(([\w.]+)+)+!"
    configure(dora, **{field: {pattern: 3} if field.endswith("_pattern") else pattern})
    assert "has a pattern that cannot be used" in refusal(dora)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (f"{QUERY}.lora_A.weight", None, f"lacks a tensor base_model.model.{QUERY}.lora_A.weight"),
        (f"{QUERY}.lora_magnitude_vector", torch.zeros(31), "[31] of torch.float32, for base and settings it is [32]"),
        (f"{QUERY}.lora_A.weight", torch.zeros(4, 32, dtype=torch.int64), "[4, 32] of torch.int64"),
        ("encoder.layer.9.lora_A.weight", torch.zeros(4, 32), "has a tensor base_model.model.encoder.layer.9.lora_A"),
    ],
)
def test_tensor_that_does_not_fit_is_an_error(name: str, tensor: torch.Tensor | None, message: str, dora: Path) -> None:
    path = dora / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path) | {f"base_model.model.{name}": tensor}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    assert message in refusal(dora)


def test_biases_of_b_need_a_bias_of_the_base(tmp_path: Path) -> None:
    checkpoints.decoder(tmp_path, lora_bias=True, target_modules=["q_proj"])
    assert "lora_bias=True" in refusal(tmp_path)


def test_pickle_runs_no_code(dora: Path) -> None:
    (dora / "adapter" / "adapter_model.safetensors").unlink()
    witness = dora / "witness"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (witness,)

    torch.save({f"{QUERY}.lora_A.weight": Evil()}, dora / "adapter" / "adapter_model.bin")
    assert "cannot be read as tensors" in refusal(dora)
    assert not witness.exists()
