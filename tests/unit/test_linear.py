"""Linear layers on a CPU: prepacked weights against float64, and the same bits in any number of rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from e5 import Embedder
from e5.network import linear
from e5.network.linear import can_prepack, prepack
from tests.token_ids import arrays

CPU = torch.device("cpu")
SHAPES = [(64, 48), (384, 1536), (1536, 384), (33, 17)]
PREPACKS = pytest.mark.skipif(not can_prepack(CPU, torch.float32), reason="this CPU's torch has no prepacked products")


class OneLayer:
    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype, bias: bool = True) -> None:
        torch.manual_seed(0)
        self.matrix = linear.empty(out_features, in_features, CPU, dtype, bias=bias)
        self.matrix.weight.normal_()
        if self.matrix.bias is not None:
            self.matrix.bias.normal_()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prepacked", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)]
)
def test_products_match_float64(
    shape: tuple[int, int],
    bias: bool,
    prepacked: bool,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not prepacked:
        monkeypatch.setattr(linear, "can_prepack", lambda *_: False)
    layer = OneLayer(*shape, dtype, bias)
    weight = layer.matrix.weight.double()
    bias_values = torch.zeros(shape[1]) if layer.matrix.bias is None else layer.matrix.bias
    assert prepack([layer]) == layer.matrix.prepacked == linear.can_prepack(CPU, dtype)
    rows, residual = torch.randn(5, shape[0], dtype=dtype), torch.randn(5, shape[1], dtype=dtype)
    product = rows.double() @ weight.T + bias_values.double()
    before = residual.clone()
    scale = product.abs().max()
    for got, want in (
        (layer.matrix.linear(rows), product),
        (layer.matrix.linear_gelu(rows), gelu(product)),
        (layer.matrix.linear_add(rows, residual), product + before.double()),
    ):
        assert got.dtype == dtype and got.shape == want.shape
        assert (got.double() - want).abs().max() < tolerance * scale
    assert torch.equal(residual, before)


def test_gelu_is_exact_not_the_tanh_approximation() -> None:
    """The two differ by up to 5e-4, which random products of a layer hide."""
    layer = OneLayer(16, 16, torch.float32)
    layer.matrix.weight.copy_(torch.eye(16))
    assert layer.matrix.bias is not None
    layer.matrix.bias.zero_()
    prepack([layer])
    rows = torch.linspace(-4, 4, 16 * 8).view(8, 16)
    assert (layer.matrix.linear_gelu(rows) - gelu(rows.double())).abs().max() < 2e-6


def test_no_weights_are_prepacked_on_a_device_other_than_the_cpu() -> None:
    assert not can_prepack(torch.device("meta"), torch.float32) and not can_prepack(CPU, torch.float64)


@PREPACKS
@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_in_any_number_of_rows(shape: tuple[int, int]) -> None:
    """Except alone, so that batches have two rows or more (`batches.bucket_size`)."""
    layer = OneLayer(*shape, torch.float32)
    assert prepack([layer])
    rows, residual = torch.randn(600, shape[0]), torch.randn(600, shape[1])

    def results(count: int) -> list[Tensor]:
        some, other = rows[:count].clone(), residual[:count].clone()
        return [layer.matrix.linear(some), layer.matrix.linear_gelu(some), layer.matrix.linear_add(some, other)]

    together = results(600)
    for count in (*range(2, 40), 63, 64, 65, 100, 257, 512):
        assert all(torch.equal(got, want[:count]) for got, want in zip(results(count), together, strict=True)), count


@PREPACKS
@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("model", ["e5-small", "multilingual-e5-base", "e5-mistral-7b-instruct"])
def test_a_text_has_the_same_bits_in_any_batch(
    model: str, bert_folder: Path, xlm_roberta_folder: Path, decoder_folder: Path
) -> None:
    folder = {"e5-small": bert_folder, "multilingual-e5-base": xlm_roberta_folder}.get(model, decoder_folder)
    embedder = Embedder.load(model, folder, dtype="float32", device="cpu")
    random = np.random.default_rng(0)
    lengths = [2, 2, 3, 7, 16, 17, 33, 64, 95, 96, 97, 130, 199, 200, 230, 250, 251, 280]
    lengths = [length for length in lengths if length <= embedder.packed.max_positions]
    assert lengths[-1] >= 250
    texts = arrays([random.integers(5, 60, length).tolist() for length in lengths])
    alone = torch.cat([embedder.forward([text]) for text in texts])
    for _ in range(6):
        chosen = sorted(random.choice(len(texts), random.integers(2, 12), replace=False), reverse=True)
        got = embedder.forward([texts[index] for index in chosen])
        assert torch.equal(got, alone[chosen.copy()]), chosen
