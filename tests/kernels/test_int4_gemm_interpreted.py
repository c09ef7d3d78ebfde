# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel in Triton's interpreter, in float16 and float32, against the float64 reference.

Tolerance, for each element: y is rounded once, half a unit in its last place; weights are exact; sums are in float32,
so they are off by 1e-5 sum |x| |w| at most. Shapes are small, for the interpreter takes a second for half a million
weights.
"""

import pytest
import torch

from aerie.kernels.int4_gemm import api, reference, tuning
from aerie.kernels.int4_gemm.pack import FIELD_MASK, FIRST_COUNTER, PackedWeight, pack
from aerie.kernels.int4_gemm.tuning import Cut

pytestmark = pytest.mark.usefixtures("interpreter", "poison")

# N, K, group: whole tiles and steps; N = 1; neither a multiple of anything, with a last group that is a part of one.
SHAPES = [(128, 256, 128), (64, 256, 64), (1, 128, 64), (77, 200, 64), (130, 328, 128)]
ROWS = [1, 3, 17]
HALF_ULP = {torch.float16: 2.0**-11, torch.float32: 2.0**-24}
ACCUMULATION = 1e-5
SMALL = Cut(tile_n=64, tile_m=16, splits=1, warps=4, stages=3)


class Layer:
    """A random weight, packed, and in float64."""

    def __init__(self, outputs: int, inputs: int, group: int, asymmetric: bool = False, gate_up: bool = False) -> None:
        groups = -(-inputs // group)
        q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
        # Both types of scales come by.
        scale = (torch.rand(outputs, groups) * 0.01 + 0.001).to(torch.bfloat16 if asymmetric else torch.float16)
        zero = torch.randint(0, 16, (outputs, groups), dtype=torch.uint8) if asymmetric else None
        self.packed = pack(q, scale, zero, group, gate_up)
        self.exact = reference.dequantise(q, scale, zero, group)
        self.gate_up = gate_up


def assert_close(
    y: torch.Tensor,
    layer: Layer,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> None:
    expected = reference.int4_gemm(x, layer.exact, bias, residual, layer.gate_up)
    products = reference.int4_gemm(x.abs(), layer.exact.abs())
    if layer.gate_up:
        # d(SiLU(g) u) is at most 1.1 |u| dg + |SiLU(g)| du.
        gate, up = reference.int4_gemm(x, layer.exact, bias).chunk(2, dim=-1)
        for_gate, for_up = products.chunk(2, dim=-1)
        products = 1.1 * up.abs() * for_gate + gate.abs() * for_up
    assert y.shape == expected.shape
    assert y.dtype == x.dtype
    assert ((y.double() - expected).abs() <= HALF_ULP[y.dtype] * expected.abs() + ACCUMULATION * products).all()


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
def test_kernel_equals_reference(outputs: int, inputs: int, group: int, dtype: torch.dtype, asymmetric: bool) -> None:
    torch.manual_seed(outputs + inputs)
    layer = Layer(outputs, inputs, group, asymmetric)
    for rows in ROWS:
        x = torch.randn(rows, inputs).to(dtype)
        assert_close(api.int4_gemm(x, layer.packed), layer, x)


@pytest.mark.parametrize("splits", [2, 3])
@pytest.mark.parametrize("group", [64, 128])
def test_the_splits_of_k_are_added_up(splits: int, group: int) -> None:
    """Five steps: splits of different length. Counters are left as they were found, else the next call would hang."""
    torch.manual_seed(0)
    layer = Layer(100, 1160, group, asymmetric=True)
    for rows in (2, 16):
        x = torch.randn(rows, 1160)
        assert_close(run(x, layer.packed, splits=splits), layer, x)
        assert layer.packed.control[0] == FIELD_MASK
        assert not layer.packed.control[FIRST_COUNTER:].any()


def run(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    splits: int = 1,
) -> torch.Tensor:
    return api.run_kernel(x, weight, bias, residual, Cut(SMALL.tile_n, SMALL.tile_m, splits, SMALL.warps, SMALL.stages))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("gate_up", [False, True], ids=["plain", "silu_mul"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_what_comes_after_the_product(gate_up: bool, bias: bool, residual: bool, splits: int) -> None:
    torch.manual_seed(1)
    layer = Layer(90, 512, 128, gate_up=gate_up)
    x = torch.randn(3, 512).half()
    bias_N = torch.randn(90).half() if bias else None
    added = torch.randn(3, 45 if gate_up else 90).half() if residual else None
    assert_close(run(x, layer.packed, bias_N, added, splits), layer, x, bias_N, added)


@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
@pytest.mark.parametrize("splits", [1, 2])
def test_a_row_does_not_depend_on_its_company(dtype: torch.dtype, splits: int) -> None:
    """Else verifying drafted tokens would choose others than decoding them one by one. Bit for bit."""
    torch.manual_seed(2)
    layer = Layer(64, 320, 128, asymmetric=True)
    x, residual = torch.randn(16, 320).to(dtype), torch.randn(16, 64).to(dtype)
    together = run(x, layer.packed, None, residual, splits)
    for rows in (1, 2, 3, 5, 8, 11, 15):
        first = (5 * rows) % (17 - rows)
        alone = run(x[first : first + rows], layer.packed, None, residual[first : first + rows], splits)
        assert torch.equal(alone, together[first : first + rows])


@pytest.mark.parametrize("name", tuning.table(tuning.DEFAULT).buckets)
def test_every_cut_of_the_table_computes_the_same(name: str) -> None:
    torch.manual_seed(3)
    layer = Layer(200, 512, 128)
    how = tuning.table(tuning.DEFAULT).buckets[name]
    x = torch.randn(70 if name == "more" else int(name), 512).half()
    splits = min(how.splits, 2)
    y = api.run_kernel(x, layer.packed, None, None, Cut(how.tile_n, how.tile_m, splits, how.warps, how.stages))
    assert_close(y, layer, x)


def test_activations_of_any_shape() -> None:
    torch.manual_seed(4)
    layer = Layer(48, 128, 128)
    x = torch.randn(128, 2, 3).half().permute(1, 2, 0)
    y = api.int4_gemm(x, layer.packed)
    assert y.shape == (2, 3, 48)
    assert_close(y.view(6, 48), layer, x.reshape(6, 128))
    assert api.int4_gemm(x[:, :0], layer.packed).shape == (2, 0, 48)


def test_bfloat16_is_refused() -> None:
    """The interpreter keeps bfloat16 as integers and computes with those: nonsense, and no error."""
    layer = Layer(16, 128, 128)
    with pytest.raises(TypeError, match="silently wrong in bfloat16"):
        api.int4_gemm(torch.randn(1, 128).bfloat16(), layer.packed)
