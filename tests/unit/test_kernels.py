"""The fused kernels against the formulas in float64.

On a GPU the kernels are compiled; elsewhere Triton's interpreter runs them (tests/environment.py).
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from e5.network import linear, torch_ops
from e5.network.linear import FLOAT8, Activations
from e5_cog.repository import ROOT

pytestmark = pytest.mark.kernels
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
kernels: Any = pytest.importorskip("e5.network.kernels", reason="Triton is for Linux", exc_type=ImportError)

TOLERANCE = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
DTYPES = list(TOLERANCE)
EPSILON = 1e-5


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 2).to(DEVICE, dtype)


def error(got: Tensor, want: Tensor) -> float:
    return float(torch.linalg.norm(got.double() - want) / torch.linalg.norm(want))


def dequantized(rows: Activations) -> Tensor:
    assert rows.scale is not None
    return rows.values.double() * rows.scale.double()


def norm(rows: Tensor, weight: Tensor) -> Tensor:
    rows = rows.double()
    return rows / (rows.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [32, 100, 4096])
@pytest.mark.parametrize("adds", [False, True])
def test_add_rms_norm(dtype: torch.dtype, width: int, adds: bool) -> None:
    hidden, residual, weight = draw(5, width, dtype=dtype), draw(5, width, dtype=dtype), draw(width, dtype=dtype)
    total = (hidden.double() + residual.double()).to(dtype) if adds else hidden.clone()
    got = kernels.add_rms_norm(hidden, residual if adds else None, weight, EPSILON, dtype)
    assert torch.equal(hidden, total), "the sum is stored, rounded once"
    assert got.scale is None and got.values.dtype == dtype
    assert error(got.values, norm(total, weight)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "others", "width"), [(5, 2, 16), (12, 0, 64), (40, 8, 128), (1, 3, 24)])
def test_apply_rope(dtype: torch.dtype, count: int, others: int, width: int) -> None:
    rows = draw(7, count + others, width, dtype=dtype)
    before = rows.double()
    angles = draw(7, width // 2, dtype=torch.float32)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    kernels.apply_rope(rows[:, :count], cos_sin)
    x, y = before[:, :count].chunk(2, -1)
    cos, sin = angles.double().cos().unsqueeze(1), angles.double().sin().unsqueeze(1)
    want = torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1)
    assert error(rows[:, :count], want) < TOLERANCE[dtype]
    assert torch.equal(rows[:, count:].double(), before[:, count:]), "the other heads are unchanged"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 2048, 3000])
def test_silu_and_mul(dtype: torch.dtype, width: int) -> None:
    rows = draw(3, 2 * width, dtype=dtype)
    rows[0, :2] = torch.tensor([-1e4, 0.0])  # for -1e4, exp overflows and silu is 0
    left, right = rows.double().chunk(2, -1)
    got = kernels.silu_and_mul(rows, dtype)
    assert got.scale is None and got.values.dtype == dtype and bool(torch.isfinite(got.values).all())
    assert error(got.values, left * torch.sigmoid(left) * right) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [32, 100, 1024])
def test_add_layer_norm(dtype: torch.dtype, width: int) -> None:
    rows, residual = draw(5, width, dtype=dtype), draw(6, width, dtype=dtype)[1:]
    weight, bias = draw(2, width, dtype=dtype)
    rows[1], residual[1], rows[2, 3] = 0.0, 0.0, torch.nan
    total = rows.double() + residual.double()
    centered = total - total.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    want = centered / (variance + EPSILON).sqrt() * weight.double() + bias.double()
    numbers = [0, 1, 3, 4]
    for ops, rounding in ((kernels, 1), (torch_ops, 2)):  # torch's operators also round the sum
        got = ops.add_layer_norm(rows, residual, weight, bias, EPSILON)
        assert got.dtype == dtype and error(got[numbers], want[numbers]) < rounding * TOLERANCE[dtype]
        assert torch.equal(got[1], bias) and bool(got[2].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float8_scales_make_each_row_s_maximum_448(dtype: torch.dtype) -> None:
    """With three mantissa bits, the error of a value is at most a sixteenth of it, or the row's smallest step.

    Triton's interpreter (3.6) loses the carry when rounding reaches the next power of two (126.7 → 64), and truncates
    where the GPU rounds. So without a GPU the test skips such values and allows the others an error of an eighth.
    """
    hidden, weight, both = draw(4, 96, dtype=dtype), draw(96, dtype=dtype), draw(4, 96, dtype=dtype)
    both[1] = 0.0
    left, right = both.double().chunk(2, -1)
    for got, want in (
        (kernels.cast(both, FLOAT8), both.double()),
        (kernels.silu_and_mul(both, FLOAT8), left * torch.sigmoid(left) * right),
        (kernels.add_rms_norm(hidden.clone(), None, weight, EPSILON, FLOAT8), norm(hidden, weight)),
    ):
        assert got.values.dtype == FLOAT8 and got.scale.shape == (4, 1)
        largest = want.abs().amax(1, keepdim=True)
        assert torch.allclose(got.scale.double(), (largest / 448).clamp(min=1e-12), rtol=1e-5)
        bound = want.abs() / (16 if CUDA else 8) + got.scale.double() * 2**-9
        scaled = want / got.scale.double()
        carried = scaled.frexp().exponent < scaled.to(FLOAT8).double().frexp().exponent
        counts = torch.ones_like(carried) if CUDA else ~carried
        assert counts.double().mean() > 0.9
        assert bool(((dequantized(got) - want).abs() <= bound * 1.001)[counts].all())
        full = torch.abs(got.values.float()).amax(1) == 448
        assert torch.equal(full, largest[:, 0] > 0) or not CUDA


@pytest.mark.skipif(not CUDA, reason="Triton's interpreter turns NaN into a number in float8")
def test_nan_passes_through_float8() -> None:
    rows = draw(3, 256, dtype=torch.bfloat16)
    rows[1, 7] = torch.nan
    for got in (kernels.cast(rows, FLOAT8), kernels.silu_and_mul(rows, FLOAT8), Activations(*linear.quantize(rows))):
        broken = dequantized(got).isnan().any(dim=1)
        assert broken.tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_s_operators_compute_the_same(dtype: torch.dtype) -> None:
    """The fallback without Triton. It rounds after each operation, so its tolerance is twice the kernels'."""
    hidden, residual, weight = (draw(*shape, dtype=dtype) for shape in ((6, 64), (6, 64), (64,)))
    total = (hidden.double() + residual.double()).to(dtype)
    rows = torch_ops.add_rms_norm(hidden, residual, weight, EPSILON, dtype).values
    assert rows.dtype == dtype and torch.equal(hidden, total)
    assert error(rows, norm(total, weight)) < 2 * TOLERANCE[dtype]
    left, right = residual.double().chunk(2, -1)
    gated = torch_ops.silu_and_mul(residual, dtype).values
    assert error(gated, left * torch.sigmoid(left) * right) < 2 * TOLERANCE[dtype]
    table = torch.randn(9, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    positions = torch.tensor([0, 3, 8, 3, 1, 0], device=DEVICE)
    cos_sin = torch_ops.gather_cos_sin(table, positions, dtype)
    heads = total.view(6, 2, 32).clone()
    torch_ops.apply_rope(heads, cos_sin)
    cos, sin = table[positions].double().unsqueeze(1).chunk(2, -1)
    x, y = total.double().view(6, 2, 32).chunk(2, -1)
    assert error(heads, torch.cat((x * cos - y * sin, y * cos + x * sin), -1)) < 2 * TOLERANCE[dtype]


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from e5.network import kernels

F16 = {name: "*fp16" for name in ("hidden", "residual", "weight", "bias", "gate_up", "heads", "rows")}
for float8 in (False, True):
    out = dict(out="*fp8e4nv", scale="*fp32") if float8 else dict(out="*fp16", scale="*fp16")
    for kernel, constants in (
        (kernels._add_rms_norm, dict(WIDTH=4096, BLOCK=4096, ADD=True)),
        (kernels._apply_rope, dict(HALF=64, BLOCK=64, HEADS=8)),
        (kernels._silu_and_mul, dict(WIDTH=14336, BLOCK=16384 if float8 else 2048)),
        (kernels._quantize, dict(WIDTH=4096, BLOCK=4096)),
        (kernels._add_layer_norm, dict(WIDTH=1024, BLOCK=1024)),
    ):
        if kernel is (kernels._add_layer_norm if float8 else kernels._quantize):
            continue
        types = F16 | out | dict(cos_sin="*fp32", eps="fp32", stride="i32", count="i32")
        signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
                   if signature[name].startswith("*") or name == "stride"}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = compile(source, target=GPUTarget("cuda", 90, 32))
        ptx = compiled.asm["ptx"]
        wide = sum(f".v{n}.b{bits}" in ptx for n, bits in ((2, 32), (4, 32), (8, 16)))
        print(kernel.__name__, float8, len(compiled.asm["cubin"]), "wide" if wide else "narrow",
              "e4m3" if "e4m3" in ptx else "-")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_kernels_compile_for_hopper_with_wide_loads(tmp_path: Path) -> None:
    """For compute capability 9.0 and the largest models' sizes. Compiling needs no GPU."""
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE, "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [
        ("_add_rms_norm", "False"),
        ("_apply_rope", "False"),
        ("_silu_and_mul", "False"),
        ("_add_layer_norm", "False"),
        ("_add_rms_norm", "True"),
        ("_apply_rope", "True"),
        ("_silu_and_mul", "True"),
        ("_quantize", "True"),
    ]
    assert all(int(line[2]) > 1000 and line[3] == "wide" for line in lines), done.stdout
    assert all((line[4] == "e4m3") == (line[1] == "True" and line[0] != "_apply_rope") for line in lines), done.stdout
