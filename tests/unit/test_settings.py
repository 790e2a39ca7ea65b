"""Settings from environment variables; invalid values are rejected with the list of valid ones."""

from pathlib import Path

import pytest

from e5.errors import SettingsError
from e5.limits import Limits
from e5.network.device import choose_device, choose_dtype
from e5.settings import Settings


def test_default_is_the_embedded_model_and_the_machine_s_choices() -> None:
    assert Settings.from_environment({}) == Settings(model="e5-mistral-tiny")
    assert Settings.from_environment({"E5_DTYPE": "", "E5_WEIGHTS": " "}) == Settings()


def test_all_variables_are_read(tmp_path: Path) -> None:
    environ = {
        "E5_MODEL": "e5-small",
        "E5_WEIGHTS": str(tmp_path),
        "E5_SOURCE": "merged",
        "E5_DEVICE": "cuda:1",
        "E5_DTYPE": "float16",
        "E5_MAX_BATCH_TOKENS": "2048",
        "E5_MAX_TEXTS": "1",
        "E5_MAX_CHARACTERS": "2",
        "E5_MAX_REQUEST_TOKENS": "3",
        "E5_MAX_QUEUED_TOKENS": "4",
        "E5_MAX_ANSWER_NUMBERS": "5",
        "E5_MAX_FILE_SECONDS": "6",
        "E5_MAX_FILE_BYTES": "7",
        "PATH": "/bin",
    }
    limits = Limits(1, 2, request_tokens=3, queued_tokens=4, answer_numbers=5, file_seconds=6, file_bytes=7)
    want = Settings("e5-small", tmp_path, "merged", "cuda:1", "float16", 2048, limits)
    assert Settings.from_environment(environ) == want


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("E5_MODEL", "e5-huge", "E5_MODEL=e5-huge .* e5-mistral-7b-instruct, e5-small"),
        ("E5_SOURCE", "lora", "E5_SOURCE=lora .* adapter, merged"),
        ("E5_DEVICE", "gpu", "E5_DEVICE=gpu .* cpu, cuda"),
        ("E5_DEVICE", "cuda:x", "E5_DEVICE=cuda:x .* cpu, cuda"),
        ("E5_DTYPE", "half", "E5_DTYPE=half .* float16, bfloat16, float32"),
        ("E5_MAX_BATCH_TOKENS", "4k", "E5_MAX_BATCH_TOKENS=4k .* whole number"),
        ("E5_MAX_BATCH_TOKENS", "0", "E5_MAX_BATCH_TOKENS=0 .* 1 or more"),
        ("E5_MAX_BATCH_TOKENS", "-1", "E5_MAX_BATCH_TOKENS=-1 .* whole number"),
        ("E5_MAX_TEXTS", "many", "E5_MAX_TEXTS=many .* whole number"),
        ("E5_MAX_QUEUED_TOKENS", "0", "E5_MAX_QUEUED_TOKENS=0 .* 1 or more"),
        ("E5_MAX_TEXT", "5", "E5_MAX_TEXT: no such setting; .* E5_MAX_TEXTS"),
        ("E5_WEIGHTS", "/nowhere", "E5_WEIGHTS=/nowhere is not a folder"),
        ("E5_MODLE", "e5-small", "E5_MODLE: no such setting; the settings are E5_MODEL,"),
        ("E5_WEIGHT", "x", "E5_WEIGHT: no such setting"),
        ("E5_WEIGHTS", "~no-such-user/x", "E5_WEIGHTS=~no-such-user/x is not a folder"),
    ],
)
def test_invalid_values_are_rejected(variable: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings.from_environment({variable: value})


@pytest.mark.parametrize(
    ("model", "characters"),
    [("e5-small", 128_000), ("e5-mistral-7b-instruct", 1_000_000), ("e5-mistral-tiny", 1_000_000)],
)
def test_default_limit_of_characters_fits_the_model(model: str, characters: int) -> None:
    assert Settings.from_environment({"E5_MODEL": model}).limits == Limits(characters=characters)
    assert Settings.from_environment({"E5_MODEL": model, "E5_MAX_CHARACTERS": "7"}).limits.characters == 7
    assert Settings.from_environment({}, model=model).limits.characters == characters


def test_other_programs_variables_are_ignored() -> None:
    """Kubernetes sets these in every pod of a namespace with a service called e5."""
    names = ("E5_SERVICE_HOST", "E5_SERVICE_PORT", "E5_PORT", "E5_PORT_5000_TCP", "E5_PORT_5000_TCP_ADDR")
    assert Settings.from_environment(dict.fromkeys(names, "10.0.0.1")) == Settings()


def test_model_passed_by_name_ignores_another_model_s_weights(tmp_path: Path) -> None:
    environ = {"E5_MODEL": "e5-small", "E5_WEIGHTS": str(tmp_path), "E5_SOURCE": "merged", "E5_DTYPE": "float32"}
    other = Settings.from_environment(environ, model="e5-base")
    assert other == Settings("e5-base", dtype="float32")
    assert Settings.from_environment(environ, model="e5-small").weights == tmp_path
    del environ["E5_MODEL"]  # the cure that an error suggests: E5_SOURCE=merged, with the name in the program
    assert Settings.from_environment(environ, model="e5-base") == Settings(
        "e5-base", tmp_path, "merged", None, "float32"
    )


def test_missing_device_is_rejected() -> None:
    with pytest.raises(SettingsError, match=r"E5_DEVICE=cuda:63: no such device; this machine has: cpu"):
        choose_device("cuda:63")


def test_dtype_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    assert choose_dtype(None, cuda) is torch.float16
    assert choose_dtype("bfloat16", cuda) is torch.bfloat16
    monkeypatch.setattr(Path, "read_text", lambda *_: "flags : fpu avx512f avx512_bf16 amx_tile\n")
    assert choose_dtype(None, cpu) is torch.bfloat16
    monkeypatch.setattr(Path, "read_text", lambda *_: "flags : fpu avx2 avx512f\n")
    assert choose_dtype(None, cpu) is torch.float32
