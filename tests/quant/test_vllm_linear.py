# SPDX-License-Identifier: Apache-2.0
"""Which kernel vLLM picks for INT4 layers, and that ours reads every layout vLLM hands it."""

import pytest
import torch
from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS, MPLinearLayerConfig
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import ScalarType, scalar_types

from aerie.kernels.w4a16_cpu import reference
from aerie.quant import vllm_kernel, vllm_linear
from aerie.quant.errors import QuantError
from aerie.quant.formats.nibbles import pack
from aerie.quant.vllm_kernel import AerieW4A16LinearKernel

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the kernel is for CPUs")
OUTPUTS, INPUTS, GROUP = 64, 128, 32


def layer_config(
    act: torch.dtype = torch.float32,
    shape: tuple[int, int] = (INPUTS, OUTPUTS),
    group: int = GROUP,
    weight: ScalarType = scalar_types.uint4b8,
) -> MPLinearLayerConfig:
    return MPLinearLayerConfig(shape, shape, weight, act, group, zero_points=weight == scalar_types.uint4)


def test_registers_once_and_first() -> None:
    vllm_linear.register()
    vllm_linear.register()
    kernels = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    assert kernels[0] is AerieW4A16LinearKernel
    assert kernels.count(AerieW4A16LinearKernel) == 1


def test_float32_is_ours_on_every_cpu() -> None:
    assert vllm_linear.serving_kernel_name("float32") == "AerieW4A16LinearKernel"


@pytest.mark.parametrize(
    ("choice", "stock_runs", "act", "ours"),
    [
        ("auto", True, torch.bfloat16, False),
        ("auto", True, torch.float32, True),
        ("auto", False, torch.bfloat16, True),
        ("aerie", True, torch.bfloat16, True),
        ("stock", False, torch.float32, False),
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, choice: str, stock_runs: bool, act: torch.dtype, ours: bool) -> None:
    monkeypatch.setenv("AERIE_CPU_INT4", choice)
    monkeypatch.setattr(vllm_kernel, "stock_operator_exists", lambda: stock_runs)
    implements, reason = AerieW4A16LinearKernel.can_implement(layer_config(act))
    assert implements is ours
    assert (reason is None) is ours


def test_unknown_choice_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AERIE_CPU_INT4", "fast")
    with pytest.raises(QuantError, match="AERIE_CPU_INT4=fast"):
        vllm_linear.register()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (layer_config(shape=(96, 64), group=64), "96 inputs"),
        (layer_config(shape=(128, 24)), "24 outputs"),
        (layer_config(group=-1), "group size -1"),
        (layer_config(weight=scalar_types.uint8b128), "4-bit"),
        (layer_config(act=torch.float64), "float64"),
    ],
)
def test_refuses_with_a_reason(config: MPLinearLayerConfig, word: str) -> None:
    implements, reason = AerieW4A16LinearKernel.can_implement(config)
    assert not implements
    assert reason is not None
    assert word in reason


def parameter(data: torch.Tensor, **dims: int) -> torch.nn.Parameter:
    """A parameter with the marks vLLM's loaders leave on theirs."""
    made = torch.nn.Parameter(data.contiguous(), requires_grad=False)
    for name, value in dims.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("layout", ["compressed-tensors", "compressed-tensors with zero points", "awq", "gptq"])
def test_reads_every_layout(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setenv("AERIE_CPU_INT4", "aerie")
    torch.manual_seed(0)
    q = torch.randint(0, 16, (OUTPUTS, INPUTS), dtype=torch.uint8)
    scale = (torch.rand(OUTPUTS, INPUTS // GROUP) * 0.01 + 0.001).bfloat16()
    zero = torch.randint(0, 16, scale.shape, dtype=torch.uint8) if "zero" in layout or layout == "awq" else None
    words = pack(q)
    layer = torch.nn.Module()
    if layout.startswith("compressed"):
        layer.words = parameter(words, input_dim=1, output_dim=0, packed_dim=1)
        layer.scales = parameter(scale.float(), input_dim=1, output_dim=0)
    else:
        layer.words = parameter(words.T, input_dim=0, output_dim=1, packed_dim=0)
        layer.scales = parameter(scale.T.float(), input_dim=0, output_dim=1)
    if zero is not None:
        packed = pack(zero.T).T
        layer.zeros = parameter(packed, input_dim=1, output_dim=0, packed_dim=0)
    weight_type = scalar_types.uint4b8 if zero is None else scalar_types.uint4
    kernel = AerieW4A16LinearKernel(layer_config(weight=weight_type), "words", "scales", "zeros")
    kernel.process_weights_after_loading(layer)
    x, bias = torch.randn(5, INPUTS), torch.randn(OUTPUTS)
    expected = reference.w4a16_linear(x, q, scale, zero, bias)
    error = (kernel.apply_weights(layer, x, bias).double() - expected).norm() / expected.norm()
    assert error < 4e-3
