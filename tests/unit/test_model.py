"""Loading and merging: bitwise peft's float64 result, one copy of the weights, no tensor missing or left over."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, MistralForCausalLM, MistralModel

from e5 import catalog
from e5.errors import WeightsError
from e5.network.batches import COARSE_STEP
from e5.network.encoder import max_positions, padding_idx
from e5.network.linear import Activations, Linear
from e5.network.load import load
from e5.network.memory import is_out_of_memory
from e5.weights import adapter
from e5.weights.adapter_config import AdapterConfig
from e5.weights.files import LocalWeights
from e5_cog.repository import ROOT
from tests import checkpoints
from tests.token_ids import pack

FLAGSHIP = catalog.get("e5-mistral-7b-instruct")
CPU = torch.device("cpu")


def weights(folder: Path) -> LocalWeights:
    base = folder / "base"
    return LocalWeights("adapter", base, base / "tokenizer.json", folder / "adapter")


def merged_by_peft(
    folder: Path, dtype: torch.dtype, arithmetic: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """peft's merge in the arithmetic's dtype, rounded to float32 and then to `dtype`."""
    base = MistralModel.from_pretrained(folder / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, folder / "adapter").to(arithmetic).merge_and_unload()
    return {name: parameter.data.float().to(dtype) for name, parameter in merged.named_parameters()}


def merged_by_us(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with checkpoints.plain_weights():
        model, _ = load(FLAGSHIP, weights(folder), CPU, dtype)
    return checkpoints.parameters(model)


ADAPTERS = {
    "plain": {},
    "alpha over rank": {"r": 3, "lora_alpha": 16},
    "rank-stabilised": {"use_rslora": True},
    "some modules": {"target_modules": ["q_proj", "v_proj"]},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"layers.0.*down_proj": 3}},
    "one module left out": {"exclude_modules": ["layers.0.mlp.up_proj"]},
    "a regular expression": {"target_modules": r".*layers\.0.*(q|k)_proj"},
    "DoRA": {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
}


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS.keys())
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_equal_peft_s_bitwise(
    options: dict[str, object], base_dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = checkpoints.decoder(tmp_path, base_options={"dtype": base_dtype}, **options)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        want, got = merged_by_peft(folder, dtype), merged_by_us(folder, dtype)
        assert want.keys() == got.keys()
        for name in want:
            assert got[name].dtype == dtype
            assert torch.equal(want[name], got[name]), name
    plain = MistralModel.from_pretrained(folder / "base", dtype=torch.float32)
    moved = [n for n, p in plain.named_parameters() if not torch.equal(p.data, merged_by_us(folder, torch.float32)[n])]
    assert moved, "the adapter changes nothing"


def test_the_embedded_model_equals_peft_s_merge() -> None:
    want = merged_by_peft(checkpoints.EMBEDDED, torch.float32)
    got = merged_by_us(checkpoints.EMBEDDED, torch.float32)
    assert all(torch.equal(want[name], got[name]) for name in want) and want.keys() == got.keys()


def test_peft_in_float32_is_at_most_one_unit_in_the_last_place_away(tmp_path: Path) -> None:
    """At most one in 16 bits. In float32 six roundings (rank 4, scaling, base), each half a unit of the magnitudes."""
    folder = checkpoints.decoder(tmp_path)
    base = dict(MistralModel.from_pretrained(folder / "base", dtype=torch.float32).named_parameters())
    halves = load_file(folder / "adapter" / "adapter_model.safetensors")
    want, got = merged_by_peft(folder, torch.float32, torch.float32), merged_by_us(folder, torch.float32)
    differs = 0
    for name, before in base.items():
        added = before.data.abs()
        if (key := f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight") in halves:
            added = added + 2 * halves[key.replace("lora_A", "lora_B")].abs() @ halves[key].abs()
        unit = torch.nextafter(added, torch.tensor(torch.inf)) - added
        assert ((want[name] - got[name]).abs() <= 3 * unit).all(), name
        differs += int((want[name] != got[name]).sum())
    assert differs, "float32 and float64 give the same result: the test compares nothing"
    for dtype in (torch.bfloat16, torch.float16):
        want, got = merged_by_peft(folder, dtype, torch.float32), merged_by_us(folder, dtype)
        for name in want:
            steps = want[name].view(torch.int16).int() - got[name].view(torch.int16).int()
            assert (steps.abs() <= 1).all(), name


@pytest.mark.parametrize("chunk", [1, 100, 33 * 7])
def test_chunk_size_does_not_change_the_merge(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.decoder(tmp_path)
    want = merged_by_us(folder, torch.float32)
    monkeypatch.setattr(adapter, "CHUNK", chunk)
    got = merged_by_us(folder, torch.float32)
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_merging_does_not_modify_the_base_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = checkpoints.decoder(tmp_path)
    name, before = "layers.0.self_attn.q_proj.weight", torch.ones(32, 32, dtype=dtype)
    base = before.clone()
    merged = adapter.Adapter(AdapterConfig(folder / "adapter")).merged(name, base)
    assert merged.dtype == torch.float32 and not torch.equal(merged, before.float())
    assert torch.equal(base, before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_merges_to_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    size: dict[str, object] = {"hidden_size": 512, "intermediate_size": 1792, "head_dim": 128, "dtype": torch.bfloat16}
    for folder in (checkpoints.decoder(tmp_path, base_options=size), checkpoints.EMBEDDED):
        model, seconds = load(FLAGSHIP, weights(folder), torch.device("cuda"), dtype)
        want = merged_by_us(folder, dtype)
        for name, parameter in checkpoints.parameters(model).items():
            assert parameter.is_cuda and torch.equal(parameter.cpu(), want[name]), name
        assert 0 < seconds["merge"] < 60 and seconds["load"] > 0


def test_half_precision_adapters_merge_like_float32_copies(tmp_path: Path) -> None:
    folder = checkpoints.decoder(tmp_path)
    file = folder / "adapter" / "adapter_model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file({name: tensor.float() for name, tensor in halves.items()}, file)
    want = merged_by_peft(folder, torch.float32)
    save_file(halves, file)
    got = merged_by_us(folder, torch.float32)
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.model.", ""])
@pytest.mark.parametrize("infix", ["", ".default"])
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_adapter_key_prefixes_and_file_formats(prefix: str, infix: str, pickled: bool, tmp_path: Path) -> None:
    folder = checkpoints.decoder(tmp_path)
    want = merged_by_us(folder, torch.float32)
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = {
        prefix + name.removeprefix("base_model.model.").replace(".weight", f"{infix}.weight"): tensor
        for name, tensor in load_file(file).items()
    }
    file.unlink()
    if pickled:
        torch.save(tensors, file.with_suffix(".bin"))
    else:
        save_file(tensors, file)
    got = merged_by_us(folder, torch.float32)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_a_sharded_base_with_a_head_loads_the_same_weights(decoder_folder: Path, tmp_path: Path) -> None:
    """Mistral-7B-v0.1 is a sharded MistralForCausalLM: a `model.` prefix, an lm_head, an index."""
    folder = tmp_path / "copy"
    shutil.copytree(decoder_folder, folder)
    single = folder / "base" / "model.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in load_file(single).items()}
    tensors["lm_head.weight"] = torch.zeros(32000, 32)
    single.unlink()
    names = sorted(tensors)
    half = len(names) // 2
    weight_map = {}
    for number, part in ((1, names[:half]), (2, names[half:])):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "base" / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "base" / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    want, got = merged_by_us(decoder_folder, torch.float32), merged_by_us(folder, torch.float32)
    assert all(torch.equal(want[name], got[name]) for name in want)


def _edit(file: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = {**load_file(file), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


Q0 = "base_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter", {f"{Q0}.lora_A.weight": None}, r"no layers.0.self_attn.q_proj.lora_A.weight"),
        (
            "adapter",
            {f"{Q0}.lora_A.weight": None, f"{Q0}.lora_B.weight": None},
            r"no tensors for layers.0.self_attn.q_proj, which its configuration says to adapt",
        ),
        (
            "adapter",
            {
                "base_model.model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(4, 32),
                "base_model.model.layers.7.mlp.up_proj.lora_B.weight": torch.zeros(48, 4),
            },
            r"adapts layers.7.mlp.up_proj \(1 left over\), which the base does not have",
        ),
        ("adapter", {"base_model.model.norm.weight": torch.zeros(32)}, r"has the tensor base_model.model.norm.weight"),
        (
            "adapter",
            {f"{Q0}.lora_A.weight": torch.zeros(3, 32), f"{Q0}.lora_B.weight": torch.zeros(32, 3)},
            r"q_proj has rank 3, its configuration says 4",
        ),
        (
            "adapter",
            {f"{Q0}.lora_B.weight": torch.zeros(31, 4)},
            r"A \[4, 32\] and B \[31, 4\] of layers.0.self_attn.q_proj do not make a \[32, 32\] weight",
        ),
        ("base", {"layers.1.mlp.up_proj.weight": None}, r"lacks layers.1.mlp.up_proj.weight \(1 missing\)"),
        ("base", {"layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}, r"has a tensor layers.2.mlp.up_proj.weight"),
        ("base", {"norm.weight": torch.zeros(31)}, r"norm.weight \[31\], which is \[32\] in the model"),
    ],
)
def test_missing_and_unexpected_tensors_are_named(
    file: str, change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    folder = checkpoints.decoder(tmp_path)
    name = "adapter_model.safetensors" if file == "adapter" else "model.safetensors"
    _edit(folder / file / name, change)
    with pytest.raises(WeightsError, match=message):
        merged_by_us(folder, torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": ["q_proj"]},
        {"exclude_modules": ["up_proj"]},
        {"layers_to_transform": [0]},
        {"target_modules": r".*self_attn\..*"},
    ],
)
def test_tensors_outside_the_configuration_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    """peft ignores them or fails. Merging them silently would give another model."""
    folder = checkpoints.decoder(tmp_path)
    _configure(folder, change)
    with pytest.raises(WeightsError, match=r"has tensors for layers\..*, which .* does not say to adapt"):
        merged_by_us(folder, torch.float32)


@pytest.mark.parametrize("targets", [["q_proj"], r".*q_proj", "all-linear"])
def test_tensors_that_the_configuration_names_must_exist(targets: object, tmp_path: Path) -> None:
    folder = checkpoints.decoder(tmp_path, target_modules=["q_proj"])
    _configure(folder, {"target_modules": targets})
    _edit(folder / "adapter" / "adapter_model.safetensors", {f"{Q0}.lora_A.weight": None, f"{Q0}.lora_B.weight": None})
    with pytest.raises(
        WeightsError, match=r"has no tensors for layers\.0\..*_proj, which its configuration says to adapt"
    ):
        merged_by_us(folder, torch.float32)


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules"])
def test_a_configuration_without_a_required_field_is_refused(field: str, tmp_path: Path) -> None:
    folder = checkpoints.decoder(tmp_path)
    _configure(folder, {field: None})
    with pytest.raises(WeightsError, match=f"has no {field}"):
        merged_by_us(folder, torch.float32)


def test_patterns_use_the_adapted_model_s_module_names(tmp_path: Path) -> None:
    """The adapter of a model with a head: its patterns and tensors have the prefix `model.`."""
    checkpoints.mistral(tmp_path / "base")

    def with_head() -> MistralForCausalLM:
        base = MistralModel.from_pretrained(tmp_path / "base", dtype=torch.float32)
        headed = MistralForCausalLM(base.config)
        headed.model.load_state_dict(base.state_dict())
        return headed

    options: dict[str, Any] = {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 64}, "task_type": "CAUSAL_LM"}
    checkpoints.adapter(tmp_path / "adapter", with_head(), **options)
    merged = PeftModel.from_pretrained(with_head(), tmp_path / "adapter").double().merge_and_unload()
    want = {name: parameter.data.float() for name, parameter in merged.model.named_parameters()}
    got = merged_by_us(tmp_path, torch.float32)
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)


def _configure(folder: Path, change: dict[str, object]) -> None:
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")


def test_a_pickled_adapter_cannot_run_code(tmp_path: Path) -> None:
    folder = checkpoints.decoder(tmp_path)
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (witness,)

    torch.save({f"{Q0}.lora_A.weight": Evil()}, folder / "adapter" / "adapter_model.bin")
    with pytest.raises(WeightsError, match="cannot be read as tensors"):
        merged_by_us(folder, torch.float32)
    assert not witness.exists()


def test_weights_of_another_architecture_are_refused(bert_folder: Path, decoder_folder: Path) -> None:
    files = LocalWeights("merged", bert_folder, bert_folder / "tokenizer.json", None)
    with pytest.raises(WeightsError, match="holds a bert model, e5-mistral-7b-instruct is a mistral one: set E5_MODEL"):
        load(FLAGSHIP, files, CPU, torch.float32)


def test_an_encoder_pools_as_the_catalogue_says(bert_folder: Path) -> None:
    files = LocalWeights("merged", bert_folder, bert_folder / "tokenizer.json", None)
    stock = AutoModel.from_pretrained(bert_folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [2, *range(5, 14), 3]
    with torch.no_grad():
        hidden = stock(torch.tensor([ids])).last_hidden_state[0]
    kinds: dict[catalog.Pooling, torch.Tensor] = {"last": hidden[-1], "mean": hidden.mean(dim=0), "cls": hidden[0]}
    for kind, want in kinds.items():
        model, _ = load(replace(catalog.get("e5-small"), pooling=kind), files, CPU, torch.float32)
        got = model.embed(pack([ids], bucket_step=COARSE_STEP))[0]
        assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 1e-5, kind


def test_positions_of_a_checkpoint(bert_folder: Path, xlm_roberta_folder: Path) -> None:
    bert, xlm_r = (AutoConfig.from_pretrained(folder) for folder in (bert_folder, xlm_roberta_folder))
    assert (bert.max_position_embeddings, padding_idx(bert), max_positions(bert)) == (512, None, 512)
    assert (xlm_r.max_position_embeddings, padding_idx(xlm_r), max_positions(xlm_r)) == (514, 1, 512)
    flagship = AutoConfig.from_pretrained(checkpoints.EMBEDDED / "base")
    assert (padding_idx(flagship), max_positions(flagship)) == (None, 4096)


PEAK = """
import sys, threading, time
from pathlib import Path
import torch
from e5 import catalog
from e5.network import load as loading
from e5.network.load import load
from e5.network.memory import is_out_of_memory
from e5.weights.files import LocalWeights

loading.keep_freed_memory = lambda: None  # a process calls it after its first load; this measures the second

def anonymous() -> int:  # bytes of private memory, without the checkpoint's mapped pages
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

folder = Path(sys.argv[1])
files = LocalWeights("adapter", folder / "base", folder / "base" / "tokenizer.json", folder / "adapter")
torch.set_num_threads(1)
torch.ones(512, 512, dtype=torch.bfloat16) @ torch.ones(512, 512, dtype=torch.bfloat16)
tiny = Path(sys.argv[2])
load(catalog.get("e5-mistral-7b-instruct"), LocalWeights("adapter", tiny / "base", tiny, tiny / "adapter"),
     torch.device("cpu"), torch.bfloat16)  # imports and first-use buffers come before the measurement
start, peak, done = anonymous(), 0, False
def watch() -> None:
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
model, _ = load(catalog.get("e5-mistral-7b-instruct"), files, torch.device("cpu"), torch.bfloat16)
done = True
thread.join()
result = model.weights_bytes
print((peak - start) / result, result)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_is_little_more_than_the_weights(tmp_path: Path, decoder_folder: Path) -> None:
    """At most 1.15 × the weights. The flagship's largest matrix in float32 is 3.3 % of its 16-bit weights."""
    size: dict[str, object] = {
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_hidden_layers": 48,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "dtype": torch.bfloat16,
        "vocab_size": 4096,
    }
    folder = checkpoints.decoder(tmp_path, base_options=size)
    command = [sys.executable, "-c", PEAK, str(folder), str(decoder_folder)]
    # By default glibc keeps some freed blocks: the ratio varied from 1.07 to 1.24.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    ratio, result = map(float, done.stdout.split())
    assert result > 320e6
    print(f"peak / weights: {ratio:.3f}")
    assert 0.95 < ratio <= 1.15


@pytest.mark.parametrize("name", ["e5-small", "multilingual-e5-large-instruct"])
def test_an_encoder_s_mean_excludes_filler(name: str, bert_folder: Path, xlm_roberta_folder: Path) -> None:
    folder = bert_folder if name == "e5-small" else xlm_roberta_folder
    files = LocalWeights("merged", folder, folder / "tokenizer.json", None)
    model, _ = load(catalog.get(name), files, CPU, torch.bfloat16)
    assert model.bucket_step
    for lengths in ([7], [12, 5], [40, 32, 9]):
        ids = [[0, *range(5, 3 + length), 2] for length in lengths]
        got = model.embed(pack(ids, model.padding_idx, bucket_step=COARSE_STEP))
        want = model.embed(pack(ids, model.padding_idx))
        assert got.shape == want.shape == (len(lengths), model.dimensions)
        assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 2e-2


def test_bucketed_products_in_16_bits_give_the_same_vectors(
    decoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN generates code for each shape, so the linear layers must see only a few sizes."""
    model, _ = load(FLAGSHIP, weights(decoder_folder), CPU, torch.bfloat16)
    assert model.bucket_step
    sizes = set()
    multiply = Linear.__call__

    def watch(layer: Linear, rows: Activations) -> torch.Tensor:
        sizes.add(len(rows.values))
        return multiply(layer, rows)

    monkeypatch.setattr(Linear, "__call__", watch)
    for lengths in ([40], [41], [20, 21], [25, 9, 5], [60, 2], [64], [33], [300], [310], [290, 20]):
        ids = [[1, *range(5, 3 + length), 2] for length in lengths]
        got, want = model.embed(pack(ids, bucket_step=COARSE_STEP)), model.embed(pack(ids))
        assert got.shape == (len(lengths), model.dimensions)
        assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 2e-2
    assert {32, 64, 320} <= sizes
    sizes.clear()
    for length in range(257, 289):
        model.embed(pack([[1] * length], bucket_step=COARSE_STEP))
    assert sizes == {288, 32}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of range"), False),
    ],
)
def test_out_of_memory_errors_are_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
