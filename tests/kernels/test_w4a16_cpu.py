# SPDX-License-Identifier: Apache-2.0
"""The INT4 operator against its float64 reference, on every instruction set this machine can run.

Tolerance: the operator rounds the activation (which the reference does too) and the result to bfloat16, once each, and
adds in float32. So |error| <= 2^-8 |y| (half a unit in the last place of bfloat16) + 1e-5 sum |x| |w|.
"""

import os
import subprocess
import sys

import pytest
import torch

from aerie.kernels.w4a16_cpu import PER_CHANNEL, api, operator_group, pack, reference, tuning, unsupported

# Outputs, inputs, group size; the operator itself takes multiples of 16 outputs and groups up to 256.
SHAPES = [
    (16, 32, 32),
    (48, 96, 32),
    (64, 128, 64),
    (96, 128, 128),
    (1088, 192, 64),
    (336, 640, 128),
    (1, 32, 32),
    (7, 256, 256),
    (1037, 192, 96),
    (100, 512, 512),
    (129, 224, 224),
]
VERIFICATION_ROWS = range(1, 9)
ROWS = [*VERIFICATION_ROWS, 13, 40, max(tuning.DENSE_FROM_ROWS.values()) + 1]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF_ULP = 2.0**-8
ACCUMULATION = 1e-5


def random_layer(outputs: int, inputs: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [N, K] and zero points [N, G] in [0, 15], bfloat16 scales [N, G]."""
    q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    scale = (torch.rand(outputs, inputs // group) * 0.01 + 0.001).bfloat16()
    return q, scale, torch.randint(0, 16, (outputs, inputs // group), dtype=torch.uint8)


def assert_close(y: torch.Tensor, expected: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    rounding = {torch.float16: 2.0**-11}.get(y.dtype, 0.0)  # a float16 result is rounded once more
    bound = (HALF_ULP + rounding) * expected.abs() + ACCUMULATION * (x.double().abs() @ weight.abs().T)
    assert ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operator_equals_reference(outputs: int, inputs: int, group: int, dtype: torch.dtype) -> None:
    torch.manual_seed(outputs + inputs)
    q, scale, _ = random_layer(outputs, inputs, group)
    words, scales = pack.pack_weight(q), pack.pack_scales(scale, inputs)
    weight = reference.dequantise(q, scale)
    for rows in ROWS:
        x = torch.randn(rows, inputs).to(dtype)
        y = api.w4a16_linear(x, words, scales, outputs)
        assert y.dtype == dtype
        assert y.shape == (rows, outputs)
        assert_close(y, reference.w4a16_linear(x, q, scale), x, weight)


@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
def test_zero_points(outputs: int, inputs: int, group: int) -> None:
    """The offset (8 - z) * scale is rounded to bfloat16: an eighth of a step at most, here against that very weight."""
    torch.manual_seed(0)
    q, scale, zero = random_layer(outputs, inputs, group)
    scales = pack.pack_scales(scale, inputs, zero)
    offset = scales[:, :outputs, 1].T.double().repeat_interleave(operator_group(inputs, group), dim=1)
    weight = reference.dequantise(q, scale) + offset
    exact = reference.dequantise(q, scale, zero)
    step = scale.double().repeat_interleave(group, dim=1)
    assert ((weight - exact).abs() <= step / 32 + 1e-12).all()
    x = torch.randn(5, inputs)
    y = api.w4a16_linear(x, pack.pack_weight(q), scales, outputs)
    assert_close(y, x.bfloat16().double() @ weight.T, x, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_company(dtype: torch.dtype) -> None:
    """Else verifying five tokens at once would choose other tokens than decoding them one by one. Bit for bit."""
    torch.manual_seed(1)
    q, scale, _ = random_layer(190, 256, 64)
    words, scales = pack.pack_weight(q), pack.pack_scales(scale, 256)
    x = torch.randn(40, 256).to(dtype)
    together = api.w4a16_linear(x, words, scales, 190)
    for rows in VERIFICATION_ROWS:
        for first in (0, 3, 32):
            alone = api.w4a16_linear(x[first : first + rows], words, scales, 190)
            assert torch.equal(alone, together[first : first + rows])


def test_the_routes_agree() -> None:
    """Both round at the same places, so they differ by a last bit where sums fall on either side of a tie."""
    torch.manual_seed(2)
    q, scale, _ = random_layer(320, 256, 64)
    words, scales = pack.pack_weight(q), pack.pack_scales(scale, 256)
    block = pack.block_rows()
    if block is None:
        pytest.skip("no float32 tiles on this instruction set")
    x = torch.randn(200, 256).bfloat16()
    few, many = api.few_rows(x, words, scales), api.many_rows(x, words, scales, block)
    assert (few != many).float().mean() < 1e-3
    torch.testing.assert_close(few, many, rtol=2 * HALF_ULP, atol=1e-4)


@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
def test_tiles_are_exact(outputs: int, inputs: int, group: int) -> None:
    """Reads torch's layout back: this is what notices when a new torch changes it."""
    torch.manual_seed(3)
    q, scale, _ = random_layer(outputs, inputs, group)
    block = pack.block_rows()
    if block is None:
        pytest.skip("no float32 tiles on this instruction set")
    rows = pack.padded(outputs)
    tile = pack.float_tile(pack.pack_weight(q), pack.pack_scales(scale, inputs), 0, rows, block)
    assert torch.equal(tile.T.double()[:outputs], reference.dequantise(q, scale))
    assert not tile[:, outputs:].any()


def test_words_are_read_from_the_lowest_bits() -> None:
    words = torch.tensor([[0x76543210, -0x01234568]], dtype=torch.int32)  # the second is 0xFEDCBA98
    assert pack.nibbles(words).tolist() == [list(range(16))]
    assert torch.equal(pack.pack_words(words.repeat(40, 4)), pack.pack_weight(torch.arange(16).repeat(40, 4)))


def test_leading_dimensions_and_bias() -> None:
    torch.manual_seed(4)
    q, scale, _ = random_layer(30, 64, 32)
    words, scales, bias = pack.pack_weight(q), pack.pack_scales(scale, 64), torch.randn(30)
    for x in (torch.randn(2, 3, 64), torch.randn(2, 3, 64).bfloat16()):
        y = api.w4a16_linear(x, words, scales, 30, bias)
        assert y.shape == (2, 3, 30)
        assert torch.equal(y.view(6, 30), api.w4a16_linear(x.view(6, 64), words, scales, 30) + bias)
        assert api.w4a16_linear(x[:, :0], words, scales, 30).shape == (2, 0, 30)
        assert api.w4a16_linear(x, words, scales, 30).is_contiguous()


def test_compiled_code_calls_it_whole() -> None:
    torch.manual_seed(5)
    q, scale, _ = random_layer(30, 64, 32)
    words, scales = pack.pack_weight(q), pack.pack_scales(scale, 64)
    compiled = torch.compile(api.w4a16_linear, fullgraph=True, backend="eager", dynamic=True)
    for rows in (2, 5, ROWS[-1]):
        x = torch.randn(rows, 64)
        assert torch.equal(compiled(x, words, scales, 30), api.w4a16_linear(x, words, scales, 30))


@pytest.mark.parametrize(
    ("inputs", "group", "word"),
    [
        (96, 64, "96 inputs are no multiple of the group size 64"),
        (64, 16, "group size 16 is no multiple of 32"),
        (64, 48, "group size 48 is no multiple of 32"),
        (64, 0, "group size 0 is no multiple of 32"),
        (100, PER_CHANNEL, "100 inputs with one scale an output are no multiple of 32"),
    ],
)
def test_unsupported_layers_have_a_reason(inputs: int, group: int, word: str) -> None:
    assert unsupported(inputs, group) == word
    with pytest.raises(ValueError, match=word):
        operator_group(inputs, group)


@pytest.mark.parametrize(
    ("inputs", "group", "cut"),
    [(256, 32, 32), (192, 96, 32), (512, 256, 256), (1024, 512, 256), (1152, PER_CHANNEL, 128), (96, PER_CHANNEL, 32)],
)
def test_groups_are_cut_into_the_largest_that_the_operator_takes(inputs: int, group: int, cut: int) -> None:
    assert unsupported(inputs, group) is None
    assert operator_group(inputs, group) == cut


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="already limited to an instruction set")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_on_lesser_instruction_sets(capability: str) -> None:
    """All of the above in a process whose torch is limited to fewer instructions; the layout differs with them."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
