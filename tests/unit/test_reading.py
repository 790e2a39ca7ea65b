"""Reading ahead: same tensors as the safetensors library, errors for broken files, and no leaked threads."""

import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from e5.errors import WeightsError
from e5.weights import checkpoint, reading
from tests import checkpoints

UNREADABLE = r"cannot be read \(.*\): delete it and download it again"


@pytest.fixture(autouse=True)
def no_thread_leaks() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("e5-reading")]


def random_tensors() -> dict[str, torch.Tensor]:
    """All dtypes; shapes from scalar and empty to some that are read in many parts."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{shape}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for name, dtype in reading.DTYPES.items()
        for shape in [(), (0, 3), (7,), (13, 5), (100, 41)]
    }
    return tensors | {"large": torch.randn(300, 1000, generator=generator)}


def read_all(files: list[Path], window: int = reading.WINDOW_BYTES) -> dict[str, torch.Tensor]:
    wanted = [stored for file in files for stored in reading.read_header(file)]
    return {stored.name: tensor.clone() for stored, tensor in reading.read(wanted, window=window)}


@pytest.mark.parametrize("window", [0, 1_200_064, 1_300_000, 2_500_000, reading.WINDOW_BYTES])
@pytest.mark.parametrize("part", [1000, 4096, reading.PART_BYTES])
@pytest.mark.parametrize("threads", [1, 8])
def test_tensors_equal_those_of_the_safetensors_library(
    window: int, part: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PART_BYTES", part)
    monkeypatch.setattr(reading, "THREADS", threads)
    tensors, other = random_tensors(), {"another file": torch.arange(200_000)}
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    save_file(tensors, files[0], {"format": "pt"})
    save_file(other, files[1])
    got = read_all(files, window)
    want = tensors | other
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name
    order = [stored.name for stored in reading.read_header(files[0])]
    assert list(got) == [*order, "another file"]
    begins = [stored.begin for stored in reading.read_header(files[0])]
    assert begins == sorted(begins)


def test_read_ahead_stays_within_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the consumer pauses, no more than the window is read."""
    file = tmp_path / "model.safetensors"
    save_file({f"{number:02}": torch.full((1000, 16), float(number)) for number in range(50)}, file)
    started: list[int] = []
    monkeypatch.setattr(reading, "_read_into", lambda file, place, begin: started.append(place.numel()))
    tensors = reading.read(reading.read_header(file), window=10 * 64_000)
    next(tensors)
    assert sum(started) <= 10 * 64_000
    for _ in range(5):
        next(tensors)
    tensors.close()
    assert 6 * 64_000 <= sum(started) <= 15 * 64_000


def test_ring_buffer_pieces_never_overlap() -> None:
    """Compared with sets of the allocated bytes, for random sizes that wrap around in many ways."""
    ring, owned = reading._RingBuffer(10_000), list[set[int]]()
    start, generator = ring.allocate(1).data_ptr(), torch.Generator().manual_seed(0)  # type: ignore[union-attr]
    ring.free_oldest()
    allocated = refused = 0
    for size in torch.randint(0, 5000, (3000,), generator=generator).tolist():
        while (piece := ring.allocate(size)) is None:
            refused += 1
            assert owned, "an empty ring buffer must have room"
            owned.pop(0)
            ring.free_oldest()
        bytes_ = set(range(first := piece.data_ptr() - start if size else 0, first + size))
        assert len(piece) == size and bytes_ <= set(range(10_048)) and not any(bytes_ & one for one in owned)
        owned.append(bytes_)
        allocated += 1
    assert allocated == 3000 and refused > 1000


def test_closing_early_ends_the_threads(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(random_tensors(), file)
    tensors = reading.read(reading.read_header(file))
    next(tensors)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("e5-reading")]
    tensors.close()  # the fixture checks that the threads end


def test_thread_error_reaches_the_consumer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    save_file(random_tensors(), file)

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.preadv", broken)
    with pytest.raises(WeightsError, match=UNREADABLE) as caught:
        read_all([file])
    assert str(file) in str(caught.value) and "Input/output error" in str(caught.value)


def test_file_that_shrinks_or_disappears_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(random_tensors(), file)
    wanted = reading.read_header(file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"ends at byte \d+, \d+ bytes too soon\): delete it and download it again"):
        for _ in reading.read(wanted):
            pass
    file.unlink()
    with pytest.raises(WeightsError, match=UNREADABLE):
        next(reading.read(wanted))


NESTED = "nested here"


def tensor(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}


def headers(tensors: dict[str, Any], body: int = 16) -> bytes:
    text = json.dumps(tensors).encode().replace(json.dumps(NESTED).encode(), b"[" * 100_000 + b"]" * 100_000)
    return struct.pack("<Q", len(text)) + text + bytes(body)


def header(changes: dict[str, Any], body: int = 16) -> bytes:
    return headers({"a": tensor(0, 16) | changes}, body)


MALFORMED = {
    "nothing": b"",
    "less than a length": b"1234",
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{..}",
    "no UTF-8": struct.pack("<Q", 4) + b"\xff\xfe\xff\xfe",
    "no object": struct.pack("<Q", 2) + b"[]",
    "an unknown dtype": header({"dtype": "F31"}),
    "a dtype that torch lacks here": header({"dtype": "C64", "shape": [2]}),
    "an offset beyond the file": header({"data_offsets": [0, 32], "shape": [8]}),
    "an offset of another size": header({"data_offsets": [0, 12]}, 12),
    "a negative offset": header({"data_offsets": [-16, 0]}),
    "offsets the wrong way round": header({"data_offsets": [16, 0]}),
    "a gap in front": header({"data_offsets": [16, 32]}, 32),
    "one offset": header({"data_offsets": [16]}),
    "no offsets": header({"data_offsets": None}),
    "a shape of another size": header({"shape": [5]}),
    "a negative shape": header({"shape": [-1, -4]}),
    "a shape beyond 64 bits": header({"shape": [1 << 62, 1 << 62]}),
    "bytes that belong to nothing": header({}, 20),
    "offsets that are strings": header({"data_offsets": ["0", "16"]}),
    "offsets that are fractions": header({"data_offsets": [0.0, 16.0]}),
    "an infinite offset": header({"data_offsets": [0, float("inf")]}),
    "offsets beyond 64 bits": header({"data_offsets": [0, 1 << 70]}),
    "a shape of strings": header({"shape": ["4"]}),
    "a shape of fractions": header({"shape": [4.0]}),
    "a header of nearly 2^64 bytes": struct.pack("<Q", (1 << 64) - 8) + b"{}",
    "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "deep nesting": header({"shape": NESTED}),
    "deep nesting in the metadata": headers({"__metadata__": {"a": NESTED}}),
    "overlapping tensors": headers({"a": tensor(0, 16), "b": tensor(8, 24)}, 24),
    "two tensors in one place": headers({"a": tensor(0, 16), "b": tensor(0, 16)}),
    "a gap between tensors": headers({"a": tensor(0, 16), "b": tensor(20, 36)}, 36),
    "a tensor within another": headers({"a": tensor(0, 16), "b": tensor(4, 8)}),
    "one name twice": headers({"a": tensor(0, 16), "b": tensor(16, 32)}, 32).replace(b'"b"', b'"a"'),
    "truncated": header({}, 15),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=UNREADABLE) as caught:
        read_all([file])
    assert str(file) in str(caught.value)


def test_malformed_files_have_exactly_one_defect(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(header({}))
    assert torch.equal(read_all([file])["a"], torch.zeros(4))


@pytest.mark.parametrize("pin", [False, True])
def test_both_ways_of_reading_give_the_same_tensors(
    pin: bool, decoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, `pin` pins nothing but still reads ahead."""
    opened: list[bool] = []
    read = reading.read

    def counted(*arguments: Any, **options: Any) -> Any:
        opened.append(True)
        return read(*arguments, **options)

    monkeypatch.setattr(reading, "read", counted)
    for folder in (decoder_folder / "base", checkpoints.EMBEDDED / "base"):
        got = {name: tensor.clone() for name, tensor in checkpoint.tensors(folder, pin=pin)}
        want = load_file(folder / "model.safetensors")
        want = {name.removeprefix("model."): tensor for name, tensor in want.items() if not name.startswith("lm_head")}
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert opened == [True] * 2 * pin


@pytest.mark.parametrize("pin", [False, True])
def test_both_ways_of_reading_give_the_same_error(pin: bool, tmp_path: Path) -> None:
    checkpoints.mistral(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=rf"model.safetensors {UNREADABLE}"):
        list(checkpoint.tensors(tmp_path, pin=pin))


def test_heads_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"model.norm.weight": torch.ones(8), "lm_head.weight": torch.ones(1000, 8)}
    save_file(tensors, tmp_path / "model.safetensors")
    sizes: list[int] = []
    monkeypatch.setattr(reading, "_read_into", lambda file, place, begin: sizes.append(place.numel()))
    assert [name for name, _ in checkpoint.tensors(tmp_path, pin=True)] == ["norm.weight"]
    assert sizes == [32]


@pytest.mark.parametrize("status", [0, 2], ids=["pinned", "refused"])
def test_memory_is_unpinned_after_reading(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a fake CUDA runtime. If it refuses to pin, the tensors arrive nevertheless."""
    calls: list[tuple[str, int]] = []

    class Runtime:
        def cudaHostRegister(self, start: int, size: int, flags: int) -> int:
            assert flags == 0 and size >= 1_300_000
            calls.append(("pin", start))
            return status

        def cudaHostUnregister(self, start: int) -> int:
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("e5-reading")]
            calls.append(("unpin", start))
            return 0

    file = tmp_path / "model.safetensors"
    save_file(random_tensors(), file)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "cudart", Runtime)
        patch.setattr(torch, "zeros", lambda *_, **__: calls.append(("launch", 0)))
        tensors = reading.read(reading.read_header(file), pin=True, window=1_300_000)
        first, tensor = next(tensors)
        start = tensor.data_ptr()
        got = {first.name: tensor.clone()} | {stored.name: tensor.clone() for stored, tensor in tensors}
    assert calls == [("pin", start), ("launch", 0) if status else ("unpin", start)]
    assert ("cannot be pinned (CUDA error 2)" in caplog.text) == bool(status)
    assert all(torch.equal(got[name], tensor) for name, tensor in random_tensors().items())


@pytest.mark.gpu
def test_gpu_reading_uses_pinned_memory_and_unpins_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(random_tensors(), file)
    want, got = random_tensors(), dict[str, torch.Tensor]()
    for stored, tensor in reading.read(reading.read_header(file), pin=True, window=1_300_000):
        assert tensor.is_pinned() or not tensor.numel()
        got[stored.name] = tensor.to("cuda")
    assert not tensor.is_pinned()
    assert all(torch.equal(got[name].cpu(), want[name]) for name in want)
