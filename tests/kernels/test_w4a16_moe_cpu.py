# SPDX-License-Identifier: Apache-2.0
"""The INT4 mixture of experts against its float64 reference, on every instruction set this machine can run.

Tolerance: gate, up, their gated product and each expert's result are rounded to bfloat16, and so may y be. A rounding
is 1.6e-3 of a value in the root mean square, and these are independent: 8e-3 of y's norm is twice what they add up to.
Bit for bit the operator is what w4a16_cpu's linear layers give, expert by expert.
"""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from aerie.kernels.w4a16_cpu import PER_CHANNEL, tuning
from aerie.kernels.w4a16_cpu.api import w4a16_linear
from aerie.kernels.w4a16_cpu.reference import dequantise
from aerie.kernels.w4a16_moe_cpu import api, reference
from aerie.kernels.w4a16_moe_cpu.pack import PackedExperts, pack_experts

EXPERTS, CHOSEN = 6, 2
# Hidden size, inner size, group size.
SHAPES = [(32, 32, 32), (64, 96, 32), (128, 64, 64), (256, 128, 128), (512, 256, 256), (192, 96, 96), (96, 160, -1)]
VERIFICATION_TOKENS = range(1, 9)
MANY = EXPERTS * max(tuning.DENSE_FROM_ROWS.values())
TOLERANCE = 8e-3


class Layer(NamedTuple):
    packed: PackedExperts
    gate_up: torch.Tensor
    """Float64 [E, 2 I, H], of the very weights that are packed."""
    down: torch.Tensor


def experts(
    outputs: int, inputs: int, group: int, zeros: bool
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    groups = 1 if group == PER_CHANNEL else inputs // group
    scale = (torch.rand(EXPERTS, outputs, groups) * 0.02 + 0.02).bfloat16()
    # Powers of two: with zero points the offset is rounded to bfloat16, and then has nothing to round.
    scale = torch.exp2(scale.float().log2().round()).bfloat16() if zeros else scale
    q = torch.randint(0, 16, (EXPERTS, outputs, inputs), dtype=torch.uint8)
    zero = torch.randint(0, 16, scale.shape, dtype=torch.uint8)
    return [(q[e], scale[e], zero[e] if zeros else None) for e in range(EXPERTS)]


def random_layer(hidden: int, inner: int, group: int, zeros: bool = False) -> Layer:
    gate_up, down = experts(2 * inner, hidden, group, zeros), experts(hidden, inner, group, zeros)
    packed = PackedExperts(*pack_experts(gate_up), *pack_experts(down))
    return Layer(
        packed, torch.stack([dequantise(*one) for one in gate_up]), torch.stack([dequantise(*one) for one in down])
    )


def route(tokens: int, expert_count: int = EXPERTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids [T, A], as vLLM's router gives them: float32, int32, distinct experts in any order."""
    ids = torch.stack([torch.randperm(expert_count)[:CHOSEN] for _ in range(tokens)]) if tokens else torch.empty(0, 2)
    return torch.rand(tokens, CHOSEN).softmax(-1), ids.to(torch.int32)


def relative_error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("hidden", "inner", "group"), SHAPES)
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_operator_equals_reference(hidden: int, inner: int, group: int, zeros: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(hidden + inner)
    layer = random_layer(hidden, inner, group, zeros)
    for tokens in (1, 5, 17):
        x = torch.randn(tokens, hidden).to(dtype)
        weights, ids = route(tokens)
        y = api.w4a16_moe(x, layer.packed, weights, ids)
        assert y.dtype == dtype
        expected = reference.w4a16_moe(x, layer.gate_up, layer.down, weights, ids)
        assert relative_error(y, expected) < TOLERANCE


def test_many_tokens_take_the_route_of_many_rows() -> None:
    torch.manual_seed(1)
    layer = random_layer(64, 96, 32)
    x = torch.randn(MANY, 64)
    weights, ids = route(MANY)
    assert ids.flatten().bincount().max() > max(tuning.DENSE_FROM_ROWS.values())
    y = api.w4a16_moe(x, layer.packed, weights, ids)
    assert relative_error(y, reference.w4a16_moe(x, layer.gate_up, layer.down, weights, ids)) < TOLERANCE


def test_it_is_the_linear_layers_expert_by_expert() -> None:
    torch.manual_seed(2)
    hidden, inner = 96, 128
    layer = random_layer(hidden, inner, 32, zeros=True)
    x = torch.randn(7, hidden)
    weights, ids = route(7)
    expected = torch.zeros(7, hidden)
    for expert in range(EXPERTS):
        gate_up, gate_up_scales, down, down_scales = (tensor[expert] for tensor in layer.packed)
        gate, up = w4a16_linear(x, gate_up, gate_up_scales, 2 * inner).chunk(2, dim=-1)
        y = w4a16_linear(torch.nn.functional.silu(gate) * up, down, down_scales, hidden)
        expected += y * (weights * (ids == expert)).sum(-1, keepdim=True)
    assert torch.equal(api.w4a16_moe(x, layer.packed, weights, ids), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_does_not_depend_on_its_company(dtype: torch.dtype) -> None:
    """Else verifying five tokens at once would choose other tokens than decoding them one by one. Bit for bit."""
    torch.manual_seed(3)
    layer = random_layer(128, 96, 32)
    x = torch.randn(40, 128).to(dtype)
    weights, ids = route(40)
    together = api.w4a16_moe(x, layer.packed, weights, ids)
    for tokens in VERIFICATION_TOKENS:
        for first in (0, 3, 32):
            part = slice(first, first + tokens)
            # Nor on the order in which the router names its experts.
            alone = api.w4a16_moe(x[part], layer.packed, weights[part].flip(-1), ids[part].flip(-1))
            assert torch.equal(alone, together[part])


def test_experts_that_nobody_chose_are_not_read() -> None:
    torch.manual_seed(4)
    layer = random_layer(64, 32, 32)
    layer.packed.gate_up_scales_EGP2[4:] = torch.nan
    weights, ids = route(9, expert_count=4)
    assert torch.isfinite(api.w4a16_moe(torch.randn(9, 64), layer.packed, weights, ids)).all()


def test_experts_of_another_process_add_nothing() -> None:
    torch.manual_seed(5)
    layer = random_layer(64, 32, 32)
    x = torch.randn(4, 64)
    weights, ids = route(4)
    ids[:, 1], ids[2] = -1, -1
    y = api.w4a16_moe(x, layer.packed, weights, ids)
    assert not y[2].any()
    assert relative_error(y, reference.w4a16_moe(x, layer.gate_up, layer.down, weights, ids)) < TOLERANCE


def test_no_tokens() -> None:
    layer = random_layer(64, 32, 32)
    weights, ids = route(0)
    assert api.w4a16_moe(torch.empty(0, 64), layer.packed, weights, ids).shape == (0, 64)


def test_compiled_code_calls_it_whole() -> None:
    torch.manual_seed(6)
    layer = random_layer(64, 32, 32)
    compiled = torch.compile(api.w4a16_moe, fullgraph=True, backend="eager", dynamic=True)
    for tokens in (2, 5):
        x, (weights, ids) = torch.randn(tokens, 64), route(tokens)
        assert torch.equal(compiled(x, layer.packed, weights, ids), api.w4a16_moe(x, layer.packed, weights, ids))


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="already limited to an instruction set")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_on_lesser_instruction_sets(capability: str) -> None:
    """All of the above in a process whose torch is limited to fewer instructions; the layout differs with them."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
