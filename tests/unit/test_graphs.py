"""CUDA graphs give the same vectors as direct passes, whatever batches came before.

On the CPU a stand-in for capture recomputes into the same output buffer. Buffers, filler, capture sizes and the models
are the real ones. Attention is the textbook's operator, which reads the lengths from the tensor, as the kernel does.
"""

import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from e5 import catalog
from e5.network import attention, torch_ops
from e5.network import graphs as graphs_module
from e5.network.batches import PackedBatch
from e5.network.decoder import Decoder
from e5.network.encoder import Encoder
from e5.network.graphs import Graphs, Replay
from e5.network.load import _allocate, load
from e5.network.model import PackedModel
from e5.weights.files import LocalWeights
from tests import flash
from tests.token_ids import pack

CPU = torch.device("cpu")


def recompute(compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """A stand-in for CUDA's capture."""
    output = compute()

    def replay() -> None:
        output.copy_(compute())

    return output, replay


Tiny = tuple[catalog.Model, LocalWeights]


@pytest.fixture(scope="module", params=["e5-mistral-7b-instruct", "e5-small", "multilingual-e5-base", "cls"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A decoder, BERT, XLM-R, and BERT with the first token's vector."""
    cls = request.param == "cls"
    model = replace(catalog.get("e5-small"), pooling="cls") if cls else catalog.get(request.param)
    if model.architecture == "mistral":
        folder = request.getfixturevalue("decoder_folder")
        return model, LocalWeights("adapter", folder / "base", folder / "base" / "tokenizer.json", folder / "adapter")
    folder = request.getfixturevalue("bert_folder" if model.architecture == "bert" else "xlm_roberta_folder")
    return model, LocalWeights("merged", folder, folder / "tokenizer.json", None)


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> PackedModel:
    return load(*tiny, CPU, torch.float32)[0]


def texts(*lengths: int) -> list[list[int]]:
    draw = random.Random(str(lengths))
    return [[1, *(draw.randrange(5, 290) for _ in range(length - 2)), 2] for length in lengths]


@torch.inference_mode()
def test_graphs_give_the_same_vectors_as_direct_passes(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = {}
    batches = [(30, 17), (3,), (40, 3, 3, 3), (64,), (9, 8, 7, 6), (30, 17), (5, 4, 3), (2, 2, 2, 2)]
    for lengths in batches:
        direct[lengths] = model.embed(pack(texts(*lengths), model.padding_idx))  # with dense attention
    flash.install(monkeypatch)
    graphs = Graphs(model.network.embed, CPU, recompute, sizes=(16, 32, 64))
    results = [graphs.embed(pack(texts(*lengths), model.padding_idx)) for lengths in batches]
    for lengths, vectors in zip(batches, results, strict=True):
        want = direct[lengths]
        assert vectors is not None and vectors.shape == want.shape and vectors.dtype == torch.float32
        assert torch.linalg.norm(vectors - want) / torch.linalg.norm(want) < 1e-5, lengths


def test_the_smallest_graph_that_holds_the_batch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[int, int]] = []

    def embed(batch: PackedBatch) -> Tensor:
        computed.append((len(batch.input_ids), len(batch.cu_seqlens) - 1))
        return torch.zeros(len(batch.cu_seqlens) - 1, 4)

    graphs = Graphs(embed, CPU, recompute, sizes=(32, 16, 64))
    assert computed == [(64, 4), (32, 2), (16, 2)], "largest first: the others reuse its memory"
    for lengths, size in (
        ((16,), 16),
        ((17,), 32),
        ((8, 8), 16),
        ((5, 5, 5), 64),  # three texts: graphs of 16 and 32 tokens hold two
        ((16,) * 4, 64),
        ((64,), 64),
    ):
        computed.clear()
        assert graphs.embed(pack(texts(*lengths))) is not None
        assert [tokens for tokens, _ in computed] == [size], lengths
    computed.clear()
    assert graphs.embed(pack(texts(65))) is None
    assert graphs.embed(pack(texts(*(3,) * 5))) is None
    assert computed == []


def test_the_next_batch_does_not_overwrite_a_result() -> None:
    def embed(batch: PackedBatch) -> Tensor:
        ids: Tensor = batch.input_ids[:2]
        return ids.float().unsqueeze(1).clone()

    graphs = Graphs(embed, CPU, recompute, sizes=(16,))
    first = graphs.embed(pack([[7, 8, 9]]))
    assert first is not None and first.tolist() == [[7.0]]
    graphs.embed(pack([[1, 2], [3, 4]]))
    assert first.tolist() == [[7.0]]


def test_no_graphs_without_a_gpu(model: PackedModel) -> None:
    model.capture_graphs()
    assert model.graphs is None


def test_a_failed_capture_logs_a_warning_and_gives_no_graphs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs_module, "_CudaCapture", broken)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with caplog.at_level(logging.WARNING, "e5.network.graphs"):
        assert graphs_module.try_capture(lambda batch: batch.input_ids, CPU) is None
    assert "without CUDA graphs" in caplog.text and "not permitted" in caplog.text


@torch.inference_mode()
def test_a_pass_reads_no_value_of_the_device(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one waits for the GPU, and a graph would freeze it. Tensors on the meta device have no values to read."""
    monkeypatch.setattr(attention, "_has_kernel", lambda query: True)
    network = _allocate(tiny[0], tiny[1].checkpoint, torch.device("meta"), torch.float16)
    assert network.capturable
    batch = pack(texts(30, 17))
    tensors: dict[str, Any] = {name: part.to("meta") for name, part in vars(batch).items() if isinstance(part, Tensor)}
    assert network.embed(replace(batch, **tensors)).shape == (2, 32)


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_graphs_on_a_gpu_give_the_same_vectors_as_direct_passes(tiny: Tiny, dtype: torch.dtype) -> None:
    packed, seconds = load(*tiny, torch.device("cuda"), dtype)
    assert isinstance(packed.network, Decoder | Encoder) and packed.network.ops is not torch_ops
    assert packed.graphs is not None and seconds["graphs"] > 0
    for lengths in ((30, 17), (3,), (200, 100, 3, 3), (9, 8, 7, 6), (2, 2, 2), (300, 150)):
        batch = pack(texts(*lengths), packed.padding_idx)
        got, moved = packed.embed(batch), batch.to(packed.device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            want = packed.network.embed(moved).float()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.linalg.norm(got - want) / torch.linalg.norm(want) < 2e-3, lengths


@pytest.mark.gpu
def test_the_gpu_keeps_working_after_a_failed_capture(caplog: pytest.LogCaptureFixture) -> None:
    def reads_the_device(batch: PackedBatch) -> Tensor:
        return torch.ones(int(batch.cu_seqlens[-1]), device="cuda")  # not allowed during capture

    stream = torch.cuda.current_stream()
    assert graphs_module.try_capture(reads_the_device, torch.device("cuda")) is None
    assert "without CUDA graphs" in caplog.text
    assert torch.cuda.current_stream() == stream and torch.ones(3, device="cuda").sum().item() == 3
    gigabyte = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    reserved = torch.cuda.memory_reserved()
    del gigabyte
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - (1 << 30), "the allocator is still in capture mode"


class _FailedCapture:
    """A stand-in for torch.cuda.graph in torch 2.11: its exit raises before it tells the allocator."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("ended", [False, True], ids=["torch 2.11", "a torch that ends it"])
def test_a_failed_capture_ends_allocation_to_the_pool(ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(torch.cuda, "set_stream", lambda current: calls.append(("stream", current)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", _FailedCapture)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *arguments: calls.append(("release", *arguments)))
    with pytest.raises(RuntimeError, match="previous error during capture"):
        graphs_module._CudaCapture(CPU)(lambda: torch.ones(1))
    assert calls == [("stream", stream), ("end", 1, (0, 7)), *([] if ended else [("release", 1, (0, 7))])]
