"""Merging into a checkpoint: same parameters as loading base and adapter; a failure leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from e5 import catalog
from e5.embedder import Embedder
from e5.settings import Settings
from e5.weights.locate import locate
from e5.weights.merge import write_merged
from e5_cog.repository import ROOT
from scripts import merge_weights
from tests import checkpoints

SCRIPT = ROOT / "scripts" / "merge_weights.py"


def merge(*arguments: object) -> int:
    return merge_weights.main([*map(str, arguments), "--device", "cpu"])


def parameters(folder: Path | None, source: str, dtype: str) -> dict[str, torch.Tensor]:
    settings = Settings(catalog.EMBEDDED, folder, source, "cpu", dtype)
    with checkpoints.plain_weights():
        return checkpoints.parameters(Embedder.from_settings(settings).packed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_merged_checkpoint_loads_with_the_parameters_of_base_and_adapter(dtype: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "merged"
    assert merge("--to", target, *(() if dtype == "float16" else ("--dtype", dtype))) == 0
    want = parameters(None, "adapter", dtype)
    for got in (parameters(target, "merged", dtype), dict(AutoModel.from_pretrained(target).named_parameters())):
        assert got.keys() == want.keys()
        assert all(got[name].dtype == want[name].dtype and torch.equal(got[name], want[name]) for name in want)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [path.name for path in target.parent.iterdir()] == ["merged"]
    config = json.loads((target / "config.json").read_text("utf-8"))
    assert (config["architectures"], config["dtype"], config["use_cache"]) == (["MistralModel"], dtype, False)
    base = checkpoints.EMBEDDED / "base" / "tokenizer.json"
    assert (target / "tokenizer.json").read_bytes() == base.read_bytes()


def test_large_checkpoint_is_split_into_shards_with_an_index(tmp_path: Path) -> None:
    model = catalog.get(catalog.EMBEDDED)
    cpu = torch.device("cpu")
    target = write_merged(locate(model), tmp_path / "merged", torch.float16, cpu, max_shard_bytes=2_000_000)
    index = json.loads((target / "model.safetensors.index.json").read_text("utf-8"))
    files = {path.name: load_file(path) for path in target.glob("*.safetensors")}
    assert len(files) > 3 and set(files) == set(index["weight_map"].values())
    for name, tensors in files.items():
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 2_000_000 or len(tensors) == 1
        assert {index["weight_map"][tensor] for tensor in tensors} == {name}
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in files.values() for t in tensors.values())
    want, got = parameters(None, "adapter", "float16"), parameters(target, "merged", "float16")
    assert all(torch.equal(got[name], want[name]) for name in want)
    stock = dict(AutoModel.from_pretrained(target).named_parameters())
    assert stock.keys() == want.keys() and all(torch.equal(stock[name], want[name]) for name in want)


def test_target_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for target in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        assert merge("--to", target) == 2
        assert "is not empty: name an empty folder or one that does not exist" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_target_may_be_an_empty_folder(tmp_path: Path) -> None:
    assert merge("--to", tmp_path) == 0
    assert (tmp_path / "model.safetensors").is_file()


def test_model_without_an_adapter_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge("--model", "e5-small", "--to", tmp_path / "merged") == 2
    assert "e5-small has no adapter" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: a write fails in the middle of the tensors."""
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", limited, str(SCRIPT), "--to", str(tmp_path / "merged"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot be written (File too large): it needs 0.0223 GB; nothing was left there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.1.mlp.up_proj.weight": None}, "lacks layers.1.mlp.up_proj.weight (1 missing): download it again"),
        (
            {"layers.2.mlp.up_proj.weight": torch.zeros(48, 32)},
            "has a tensor layers.2.mlp.up_proj.weight [48, 32]: not a checkpoint of its config",
        ),
        (
            {"norm.weight": torch.zeros(31)},
            "norm.weight [31], which is [32] in the model: not a checkpoint of its config",
        ),
        ({"norm.weight": torch.full((32,), 1e5)}, "norm.weight has numbers that torch.float16 cannot hold"),
        ({"layers.0.self_attn.q_proj.weight": torch.full((32, 32), torch.nan)}, "q_proj.weight has numbers that"),
    ],
)
def test_error_names_the_unfit_tensor_and_leaves_nothing(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoints.decoder(tmp_path / "parts")
    file = folder / "base" / "model.safetensors"
    tensors = {**load_file(file), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    assert merge("--weights", folder, "--to", tmp_path / "merged") == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_adapter_of_another_base_is_an_error_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoints.decoder(tmp_path / "parts")
    file = folder / "adapter" / "adapter_model.safetensors"
    name = "base_model.model.layers.7.mlp.up_proj"
    extra = {f"{name}.lora_A.weight": torch.zeros(4, 32), f"{name}.lora_B.weight": torch.zeros(48, 4)}
    save_file({**load_file(file), **extra}, file)
    assert merge("--weights", folder, "--to", tmp_path / "merged") == 1
    assert "1 left over" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


@pytest.mark.gpu
def test_gpu_writes_the_same_files(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        assert merge_weights.main(["--to", str(tmp_path / device), "--device", device]) == 0
    one, other = ((tmp_path / device / "model.safetensors").read_bytes() for device in ("cpu", "cuda"))
    assert one == other
