"""Device-specific behaviour: encoders on a GPU, a second GPU, copying results to the host, releasing memory."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from e5 import catalog
from e5.network import pooling
from e5.network.load import load
from e5.network.memory import release_memory
from e5.network.model import SPIN_TOKENS, PendingResult
from e5.weights.files import LocalWeights
from tests.reference import Reference, centred_cosine, relative_l2
from tests.token_ids import pack


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["e5-small", "multilingual-e5-base"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_an_encoder_on_a_gpu_is_near_the_stock_one(
    name: str, dtype: torch.dtype, tolerance: float, bert_folder: Path, xlm_roberta_folder: Path
) -> None:
    folder = bert_folder if name == "e5-small" else xlm_roberta_folder
    weights = LocalWeights("merged", folder, folder / "tokenizer.json", None)
    packed, _ = load(catalog.get(name), weights, torch.device("cuda"), dtype)
    stock = Reference.load(folder, 512)
    draw = random.Random(0)
    ids = [[draw.randrange(5, 290) for _ in range(length)] for length in (1, 512, 2, 17, 17, 200, 3, 511)]
    got = packed.embed(pack(ids, packed.padding_idx)).cpu().numpy()
    with torch.no_grad():
        want = np.stack([stock._hidden(text_ids).mean(dim=0).numpy() for text_ids in ids])
    assert relative_l2(got, want) < tolerance and centred_cosine(got, want) > 1 - tolerance


@pytest.mark.gpu
def test_mean_pooling_does_not_synchronise() -> None:
    hidden = torch.ones(6, 4, dtype=torch.float16, device="cuda")
    cu_seqlens = torch.tensor([0, 1, 6], dtype=torch.int32, device="cuda")
    pooling.mean(hidden, cu_seqlens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pooled = pooling.mean(hidden, cu_seqlens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(pooled.cpu(), torch.ones(2, 4))


@pytest.mark.gpu
def test_a_model_on_the_second_gpu_does_not_use_the_first() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    program = """
import torch
from e5 import Embedder
e5 = Embedder.load(device="cuda:1")
assert e5.embed_documents(["word " * length for length in range(1, 300, 7)]).shape == (43, 256)
print(torch._C._cuda_hasPrimaryContext(0))
"""
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False\n"


class _OnSecondGpu:
    """A stand-in for a result on cuda:1."""

    is_cuda, device, shape, dtype = True, torch.device("cuda", 1), (2, 3), torch.float32


@pytest.mark.parametrize("tokens", [SPIN_TOKENS, SPIN_TOKENS + 1])
def test_results_are_copied_with_their_own_gpu_current(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[object] = []

    @contextmanager
    def use(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    class Host:
        def __init__(self, *_: object, **options: object) -> None:
            assert current == [torch.device("cuda", 1)] and options["pin_memory"]

        def copy_(self, result: object, non_blocking: bool) -> None:
            assert current == [torch.device("cuda", 1)] and non_blocking

    events: list[tuple[bool, object]] = []

    class Event:
        def __init__(self, blocking: bool) -> None:
            self.blocking = blocking

        def record(self, stream: object) -> None:
            events.append((self.blocking, stream))

    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch, "empty", Host)
    PendingResult(_OnSecondGpu(), tokens)  # type: ignore[arg-type]
    assert events == [(tokens > SPIN_TOKENS, "stream of cuda:1")] and current == []


def test_a_failure_to_release_memory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    release_memory()
