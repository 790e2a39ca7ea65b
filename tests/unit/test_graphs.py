"""Recorded passes: the same vectors as without, whatever batches came before; on the CPU with a stand-in recorder.

The stand-in computes anew, into the same place, what it was asked to record: buffers, filler and the ladder are the
real ones, and so is the decoder. The operator of attention is the textbook's, which reads the lengths from the tensor.
"""

import contextlib
import logging
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from e5 import catalog
from e5.network import graphs
from e5.network.batches import PackedBatch
from e5.network.graphs import Graphs, Replay
from e5.network.load import load
from e5.network.model import PackedModel
from e5.weights.files import LocalWeights
from tests import flash
from tests.token_ids import pack

CPU = torch.device("cpu")


def recompute(compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """In the place of CUDA's recorder."""
    output = compute()

    def replay() -> None:
        output.copy_(compute())

    return output, replay


@pytest.fixture(scope="module")
def model(decoder_folder: Path) -> PackedModel:
    base = decoder_folder / "base"
    files = LocalWeights("adapter", base, base / "tokenizer.json", decoder_folder / "adapter")
    packed, _ = load(catalog.get("e5-mistral-7b-instruct"), files, CPU, torch.float32)
    packed.bucketed = False  # as on a GPU
    return packed


def texts(*lengths: int) -> list[list[int]]:
    draw = random.Random(str(lengths))
    return [[1, *(draw.randrange(5, 9000) for _ in range(length - 2)), 2] for length in lengths]


@torch.inference_mode()
def test_recorded_passes_give_what_direct_ones_give(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = {}
    batches = [(30, 17), (3,), (40, 3, 3, 3), (64,), (9, 8, 7, 6), (30, 17), (5, 4, 3), (2, 2, 2, 2)]
    for lengths in batches:
        direct[lengths] = model.embed(pack(texts(*lengths)))  # by dense runs
    flash.install(monkeypatch)
    recorded = Graphs(model.network.forward, CPU, recompute, ladder=(16, 32, 64))
    results = [recorded.run(pack(texts(*lengths))) for lengths in batches]
    for lengths, vectors in zip(batches, results, strict=True):
        want = direct[lengths]
        assert vectors is not None and vectors.shape == want.shape and vectors.dtype == torch.float32
        assert torch.linalg.norm(vectors - want) / torch.linalg.norm(want) < 1e-5, lengths


def test_the_smallest_step_that_holds_the_batch_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []

    def forward(batch: PackedBatch) -> Tensor:
        taken.append((len(batch.input_ids), len(batch.cu_seqlens) - 1))
        return torch.zeros(len(batch.cu_seqlens) - 1, 4)

    recorded = Graphs(forward, CPU, recompute, ladder=(32, 16, 64))
    assert taken == [(64, 4), (32, 2), (16, 2)], "the largest first: the others lie in its memory"
    for lengths, step in (
        ((16,), 16),
        ((17,), 32),
        ((8, 8), 16),
        ((5, 5, 5), 64),  # three texts, where the steps of 16 and 32 tokens have room for two
        ((16,) * 4, 64),
        ((64,), 64),
    ):
        taken.clear()
        assert recorded.run(pack(texts(*lengths))) is not None
        assert [tokens for tokens, _ in taken] == [step], lengths
    taken.clear()
    assert recorded.run(pack(texts(65))) is None
    assert recorded.run(pack(texts(*(3,) * 5))) is None
    assert taken == []


def test_a_result_stays_when_the_next_batch_is_computed() -> None:
    def forward(batch: PackedBatch) -> Tensor:
        ids: Tensor = batch.input_ids[:2]
        return ids.float().unsqueeze(1).clone()

    recorded = Graphs(forward, CPU, recompute, ladder=(16,))
    first = recorded.run(pack([[7, 8, 9]]))
    assert first is not None and first.tolist() == [[7.0]]
    recorded.run(pack([[1, 2], [3, 4]]))
    assert first.tolist() == [[7.0]]


def test_without_a_gpu_nothing_is_recorded(model: PackedModel) -> None:
    model.record_graphs()
    assert model.graphs is None


def test_a_failure_to_record_is_told_and_does_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_CudaCapture", broken)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with caplog.at_level(logging.WARNING, "e5.network.graphs"):
        assert graphs.record(lambda batch: batch.input_ids, CPU) is None
    assert "without CUDA graphs" in caplog.text and "not permitted" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recorded_passes_on_a_gpu_give_what_launched_ones_give(decoder_folder: Path, dtype: torch.dtype) -> None:
    base = decoder_folder / "base"
    files = LocalWeights("adapter", base, base / "tokenizer.json", decoder_folder / "adapter")
    packed, seconds = load(catalog.get("e5-mistral-7b-instruct"), files, torch.device("cuda"), dtype)
    assert packed.graphs is not None and seconds["graphs"] > 0
    recorded = packed.graphs
    for lengths in ((30, 17), (3,), (200, 100, 3, 3), (9, 8, 7, 6), (2, 2, 2), (300, 150)):
        packed.graphs = recorded
        got = packed.embed(pack(texts(*lengths)))
        packed.graphs = None
        want = packed.embed(pack(texts(*lengths)))
        assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 2e-3, lengths


@pytest.mark.gpu
def test_after_a_failed_recording_the_gpu_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def reads_the_device(batch: PackedBatch) -> Tensor:
        return torch.ones(int(batch.cu_seqlens[-1]), device="cuda")  # which no recording may do

    stream = torch.cuda.current_stream()
    assert graphs.record(reads_the_device, torch.device("cuda")) is None
    assert "without CUDA graphs" in caplog.text
    assert torch.cuda.current_stream() == stream and torch.ones(3, device="cuda").sum().item() == 3
    gigabyte = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    reserved = torch.cuda.memory_reserved()
    del gigabyte
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - (1 << 30), "the allocator still believes in a recording"


class _FailedRecording:
    """Stands in for torch.cuda.graph in torch 2.11: leaving it raises, before the allocator learns of its end."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("ended", [False, True], ids=["torch 2.11", "torch that ends it"])
def test_a_failed_recording_is_over_for_the_allocator(ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def end(*arguments: object) -> None:
        calls.append(("end", *arguments))
        if ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    stream = SimpleNamespace(device=CPU, device_index=1, wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda one: calls.append(("stream", one)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", _FailedRecording)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *arguments: calls.append(("release", *arguments)))
    with pytest.raises(RuntimeError, match="previous error during capture"):
        graphs._CudaCapture(CPU)(lambda: torch.ones(1))
    assert calls == [("stream", stream), ("end", 1, (0, 7)), *([] if ended else [("release", 1, (0, 7))])]
