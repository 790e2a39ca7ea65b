"""Adapters of strangers: patterns that could run forever, settings of wrong types, archives that unpack to too much.

Merging itself is in test_model.py.
"""

import gc
import io
import itertools
import json
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from e5.errors import WeightsError
from e5.weights import patterns
from e5.weights.adapter import Adapter
from e5.weights.adapter_config import AdapterConfig
from e5.weights.patterns import Method, Patterns

Q0 = "layers.0.self_attn.q_proj"
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
MODULES = [f"layers.{layer}.{name}" for layer in range(32) for name in LINEAR]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS", 2.0)


@pytest.fixture
def folder(decoder_folder: Path, tmp_path: Path) -> Path:
    """An adapter's folder that a test may change."""
    return shutil.copytree(decoder_folder / "adapter", tmp_path / "adapter")


def configure(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def merge(folder: Path) -> None:
    Adapter(AdapterConfig(folder)).merged(f"{Q0}.weight", torch.zeros(32, 32))


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        merge(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 800
    return str(caught.value)


# --- patterns --------------------------------------------------------------------------------------------------------

ENDLESS = [r"(([\w.]+)+)+!", "(.|.|.)*!", ".*" * 20 + "!"]
INVALID = ["(", "[", "*", "a{99999999999}", "(" * 499 + ")" * 499]
FIELDS: dict[str, Callable[[str], object]] = {
    "target_modules": lambda pattern: pattern,
    "exclude_modules": lambda pattern: pattern,
    "layers_pattern": lambda pattern: [pattern],
    "rank_pattern": lambda pattern: {pattern: 8},
    "alpha_pattern": lambda pattern: {pattern: 8},
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("pattern", [ENDLESS[0], "("])
def test_pattern_of_any_setting_that_cannot_be_used_is_an_error(field: str, pattern: str, folder: Path) -> None:
    configure(folder, layers_to_transform=[0], **{field: FIELDS[field](pattern)})
    error = refusal(folder)
    assert "has a pattern that cannot be used" in error and pattern in error and "merge the adapter with peft" in error


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("pattern", ENDLESS + INVALID)
def test_pattern_that_is_invalid_or_may_run_forever_is_an_error(pattern: str, folder: Path) -> None:
    configure(folder, target_modules=pattern)
    assert "has a pattern that cannot be used" in refusal(folder)


@pytest.mark.parametrize("method", ["match", "fullmatch"])
def test_patterns_match_like_re_with_any_syntax(method: Method) -> None:
    tried = Patterns(Path("adapter_config.json"))
    syntax = ["(?i)LAYERS.0.*", r"(?P<a>l).*(?P=a).*", r"(?x) layers \. # the list", ".*0", "nothing", "ü\n"]
    for pattern, name in itertools.product(syntax, [Q0, "LAYERS.0.x", "ü\n", ""]):
        found = getattr(re.compile(pattern), method)(name)
        expected = None if found is None else (1, found.groupdict())
        assert tried.first(method, ["none", pattern, ".*"], name) in (expected, expected or (2, {}))
        assert tried.first(method, [pattern], name) == (None if found is None else (0, found.groupdict()))


def test_time_of_all_matches_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.3)
    bounded = Patterns(Path("adapter_config.json"))
    with pytest.raises(WeightsError, match="its patterns take longer"):
        for _ in range(1_000_000):
            bounded.first("match", ["x"], Q0)


def test_process_that_matches_ends_with_its_adapter(folder: Path) -> None:
    configure(folder, target_modules=".*")
    adapter = Adapter(AdapterConfig(folder))
    assert adapter.config.is_target(Q0)
    process = adapter.config._patterns._process
    assert process is not None and process.poll() is None
    del adapter
    gc.collect()
    assert process.poll() is not None


REAL = [
    r".*\.(q_proj|v_proj)",
    r"layers\.\d+\.self_attn\.(q|k|v)_proj",
    r".*\.layers\.\d+\.self_attn\.(q|k|v)_proj",
    r"(?:.*\.)?(?:self_attn|mlp)\.(?:q_proj|up_proj|down_proj)$",
    r"layers\.([0-9]|1[0-5])\.mlp\.[a-z]+_proj",
    r"^(?!.*mlp).*\.(?:q_proj|up_proj)$",
    r"^(layers(?=\.).*\.(gate_proj|up_proj))$",
    r"(?:.*?(?:layers|text).*?(?:self_attn|attention|attn|mlp|ffn|dense).*?(?:k_proj|v_proj|q_proj|fc1|fc2).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj|v_proj|o_proj)))",
    ["q_proj", "mlp.up_proj", "layers.3.self_attn.k_proj"],
]


@pytest.mark.parametrize("pattern", REAL, ids=str)
def test_patterns_of_real_adapters_match_like_peft_s(pattern: str | list[str], folder: Path) -> None:
    configure(folder, target_modules=pattern)
    adapter, config = AdapterConfig(folder), LoraConfig(target_modules=pattern)
    targets = [name for name in MODULES if adapter.is_target(name)]
    assert targets == [name for name in MODULES if check_target_module_exists(config, name)]
    assert targets or str(pattern).startswith(r".*\.layers")
    if isinstance(pattern, str):
        configure(folder, target_modules=["q_proj"], exclude_modules=pattern)
        adapter, config = AdapterConfig(folder), LoraConfig(target_modules=["q_proj"], exclude_modules=pattern)
        found = [name for name in MODULES if adapter.is_target(name)]
        assert found == [name for name in MODULES if check_target_module_exists(config, name) is True]


def test_a_rank_for_each_module_is_read_like_peft_s(folder: Path) -> None:
    ranks = {name: number for number, name in enumerate(MODULES, 1)} | {r"up_pro.": 300, r"layers\.1\..*": 301}
    configure(folder, rank_pattern=ranks)
    adapter = AdapterConfig(folder)
    for name in [*MODULES, "layers.40.mlp.up_proj", "layers.40.mlp.down_proj"]:
        assert adapter.by_pattern("rank_pattern", name, 4) == ranks.get(get_pattern_key(list(ranks), name), 4)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_layers_are_those_of_peft(prefix: str, folder: Path) -> None:
    options = {"target_modules": ["q_proj"], "layers_to_transform": [1, 3], "layers_pattern": "layers"}
    configure(folder, **options)
    adapter, config = AdapterConfig(folder), LoraConfig(**options)
    targets = [name for name in MODULES if adapter.is_target(prefix + name)]
    assert targets == [name for name in MODULES if check_target_module_exists(config, prefix + name)]
    assert len(targets) == 2


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", "4"),
        ("r", [4]),
        ("lora_alpha", {"a": 1}),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400),
        ("target_modules", 5),
        ("target_modules", [["q_proj"]]),
        ("target_modules", {"q_proj": 1}),
        ("exclude_modules", [None]),
        ("rank_pattern", "q_proj"),
        ("rank_pattern", {"q_proj": "4"}),
        ("alpha_pattern", {"q_proj": [8]}),
        ("alpha_pattern", {"q_proj": float("inf")}),
        ("layers_to_transform", {"0": 1}),
        ("layers_pattern", 7),
        ("use_rslora", "yes"),
        ("bias", ["none"]),
    ],
)
def test_setting_of_a_wrong_type_is_an_error(field: str, value: object, folder: Path) -> None:
    configure(folder, **{field: value})
    assert f"has {field}=" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"r":' * 100_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
        (b"\xff", "decode"),
        (b"{}" + b" " * 1_000_000, "1000002 bytes, the limit is 1000000"),
    ],
    ids=["lists", "objects", "list", "bytes", "long"],
)
def test_broken_configuration_is_an_error(content: bytes, cause: str, folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    error = refusal(folder)
    assert "adapter_config.json cannot be read" in error and cause in error


# --- .bin ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(folder: Path) -> Path:
    """The path of the adapter's tensors as .bin, saved by torch."""
    path = folder / "adapter_model.bin"
    torch.save(load_file(folder / "adapter_model.safetensors"), path)
    (folder / "adapter_model.safetensors").unlink()
    return path


def repack(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_bin_of_torch_is_read(pickled: Path) -> None:
    merge(pickled.parent)
    repack(pickled, zipfile.ZIP_STORED)
    merge(pickled.parent)


def test_compressed_bin_is_an_error(pickled: Path) -> None:
    torch.save({f"{Q0}.lora_A.weight": torch.zeros(4, 5_000_000)}, pickled)
    repack(pickled, zipfile.ZIP_DEFLATED)
    assert pickled.stat().st_size < 1_000_000
    assert "it is compressed" in refusal(pickled.parent)


def test_bin_whose_directory_lists_more_bytes_than_it_has_is_an_error(pickled: Path) -> None:
    """The same bytes under many names, in an otherwise valid archive."""
    content = pickled.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    count, size, offset = struct.unpack("<HLL", content[end + 10 : end + 20])
    directory = content[offset : offset + size]
    fields = struct.pack("<HHLL", count * 100, count * 100, size * 100, offset)
    pickled.write_bytes(content[:offset] + directory * 100 + content[end : end + 8] + fields + content[end + 20 :])
    assert "it unpacks to" in refusal(pickled.parent)


def test_bin_with_two_directories_is_an_error(pickled: Path) -> None:
    """zipfile reads the harmless directory, torch the one of a compressed archive."""
    torch.save({f"{Q0}.lora_A.weight": torch.zeros(4, 125_000)}, pickled)
    repack(pickled, zipfile.ZIP_DEFLATED)
    compressed = pickled.read_bytes()
    end = compressed.rindex(b"PK\x05\x06")
    size, offset = struct.unpack("<LL", compressed[end + 12 : end + 20])
    padding = b"PK\x03\x04" + bytes(size - 4)
    seen_by_torch = bytearray(compressed[offset:end])
    harmless = bytearray(seen_by_torch)
    at = 0
    while at < size:
        packed, name, extra, comment = struct.unpack("<20xL4xHHH", seen_by_torch[at : at + 34])
        struct.pack_into("<H", harmless, at + 10, zipfile.ZIP_STORED)
        struct.pack_into("<L", harmless, at + 24, packed)
        (start,) = struct.unpack("<L", seen_by_torch[at + 42 : at + 46])
        begin = start + 30 + sum(struct.unpack("<HH", compressed[start + 26 : start + 30]))
        struct.pack_into("<L", harmless, at + 16, zlib.crc32(compressed[begin : begin + packed]))
        struct.pack_into("<L", seen_by_torch, at + 42, start + size)
        at += 46 + name + extra + comment
    head = padding + compressed[:offset]
    directories = bytes(seen_by_torch) + bytes(harmless)
    tail = bytearray(compressed[end:])
    struct.pack_into("<L", tail, 16, len(head))
    pickled.write_bytes(head + directories + tail)
    assert torch.load(pickled, weights_only=True)[f"{Q0}.lora_A.weight"].numel() == 500_000  # torch itself unpacks it
    with zipfile.ZipFile(pickled) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 10_000
    error = refusal(pickled.parent)
    assert "cannot be read as tensors" in error and "its tensors have" not in error  # the error comes before unpacking


@pytest.mark.parametrize(
    "content",
    [
        {f"{Q0}.lora_A.weight": torch.zeros(1).expand(4, 10**9)},
        {f"{Q0}.lora_A.weight": torch.zeros(1000).to_sparse()},
        {f"{Q0}.lora_A.weight": torch.zeros(4, 32, device="meta")},
        {f"{Q0}.lora_A.weight": [1.0]},
        {5: torch.zeros(4, 32)},
        [torch.zeros(4, 32)],
    ],
    ids=["expanded", "sparse", "meta", "list", "number", "no mapping"],
)
def test_bin_of_anything_but_named_dense_tensors_is_an_error(content: object, pickled: Path) -> None:
    torch.save(content, pickled)
    assert "cannot be read as tensors" in refusal(pickled.parent)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4), torch.zeros(4, 32, 1), torch.zeros(0, 32), torch.zeros(4, 32, dtype=torch.int64)],
    ids=["vector", "cube", "empty", "integers"],
)
def test_tensor_that_is_no_matrix_is_an_error(tensor: torch.Tensor, pickled: Path) -> None:
    torch.save({f"{Q0}.lora_A.weight": tensor, f"{Q0}.lora_B.weight": torch.zeros(32, 4)}, pickled)
    assert "which is not a LoRA matrix" in refusal(pickled.parent)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.witness,)


def bare(evil: Evil) -> bytes:
    return pickle.dumps({Q0: evil})


def old_format(evil: Evil) -> bytes:
    file = io.BytesIO()
    torch.save({Q0: evil}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def zipped(evil: Evil) -> bytes:
    file = io.BytesIO()
    torch.save({Q0: evil}, file)
    return file.getvalue()


@pytest.mark.parametrize("make", [bare, old_format, zipped])
def test_pickle_runs_no_code(make: Callable[[Evil], bytes], pickled: Path) -> None:
    witness = pickled.parent / "witness"
    pickled.write_bytes(make(Evil(witness)))
    assert "cannot be read as tensors" in refusal(pickled.parent)
    assert not witness.exists()
