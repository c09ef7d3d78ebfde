# SPDX-License-Identifier: Apache-2.0
"""Which kernel vLLM picks for INT4 layers, and that ours reads every layout vLLM hands it."""

import pytest
import torch
from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS, MPLinearLayerConfig
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import ScalarType, scalar_types

from aerie.kernels.w4a16_cpu import reference
from aerie.quant import vllm_config, vllm_kernel, vllm_linear
from aerie.quant.errors import QuantError
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
    assert vllm_linear.serving_kernel("float32")[0] == "AerieW4A16LinearKernel"


@pytest.mark.parametrize(
    ("choice", "stock_runs", "dtype", "outputs", "kernel", "why"),
    [
        ("auto", False, "bfloat16", 64, "AerieW4A16LinearKernel", "vLLM's extension for this CPU has no INT4 operator"),
        ("auto", True, "float32", 64, "AerieW4A16LinearKernel", "vLLM's INT4 operator has no float32"),
        ("auto", True, "bfloat16", 24, "AerieW4A16LinearKernel", "Output size (24) not supported by CPUWNA16"),
        ("auto", True, "bfloat16", 64, "AerieW4A16LinearKernel", "without AMX faster than vLLM's"),
        ("auto", True, "float16", 64, "CPUWNA16LinearKernel", "vLLM's own runs here with this type"),
        ("aerie", True, "bfloat16", 64, "AerieW4A16LinearKernel", "AERIE_INT4_KERNEL=aerie"),
    ],
)
def test_says_which_kernel_serves_and_why(
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    stock_runs: bool,
    dtype: vllm_linear.Dtype,
    outputs: int,
    kernel: str,
    why: str,
) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", choice)
    monkeypatch.setattr(vllm_kernel, "stock_operator_exists", lambda: stock_runs)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    name, reason = vllm_linear.serving_kernel(dtype, 32, (outputs, 128))
    assert name == kernel
    assert reason.startswith(why)


@pytest.mark.parametrize(
    ("choice", "stock_runs", "amx", "act", "ours"),
    [
        ("auto", True, True, torch.bfloat16, False),
        ("auto", True, False, torch.bfloat16, True),
        ("auto", True, False, torch.float16, False),
        ("auto", True, True, torch.float32, True),
        ("auto", False, True, torch.bfloat16, True),
        ("aerie", True, True, torch.bfloat16, True),
        ("vllm", False, False, torch.float32, False),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch, choice: str, stock_runs: bool, amx: bool, act: torch.dtype, ours: bool
) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", choice)
    monkeypatch.setattr(vllm_kernel, "stock_operator_exists", lambda: stock_runs)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    implements, reason = AerieW4A16LinearKernel.can_implement(layer_config(act))
    assert implements is ours
    assert (reason is None) is ours


def test_says_when_no_kernel_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that vLLM would choose says yes, and would end at the first step."""
    monkeypatch.setenv("AERIE_INT4_KERNEL", "vllm")
    with pytest.raises(ValueError, match=r"AERIE_INT4_KERNEL=vllm, .* does not run torch\.float32"):
        vllm_linear.serving_kernel("float32")


def test_unknown_choice_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", "fast")
    with pytest.raises(QuantError, match="AERIE_INT4_KERNEL=fast"):
        vllm_linear.register()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (layer_config(shape=(96, 64), group=64), "96 inputs"),
        (layer_config(shape=(100, 64), group=-1), "100 inputs"),
        (
            MPLinearLayerConfig((128, 200), (128, 100), scalar_types.uint4, torch.float32, 32, zero_points=True),
            "100 outputs of a rank",
        ),
        (layer_config(group=16), "group size 16"),
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


def pack(q_RC: torch.Tensor) -> torch.Tensor:
    """Unsigned 4-bit integers as int32 words of eight, the first in the lowest bits."""
    eights = q_RC.to(torch.int32).view(len(q_RC), -1, 8) << torch.arange(0, 32, 4, dtype=torch.int32)
    return eights.sum(-1, dtype=torch.int32)


LAYOUTS = ("compressed-tensors", "compressed-tensors with zero points", "awq", "gptq", "gptq with zero points")
# Outputs, inputs, group size: what the operator takes as it is, and what it is made to take.
SHAPES = ((64, 128, 32), (64, 256, 256), (40, 192, 96), (1000, 96, -1))


def quantised(outputs: int, inputs: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [N, K] and zero points [N, G] in [0, 15], bfloat16 scales [N, G]."""
    q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    scale = (torch.rand(outputs, 1 if group == -1 else inputs // group) * 0.01 + 0.001).bfloat16()
    return q, scale, torch.randint(0, 16, scale.shape, dtype=torch.uint8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
def test_reads_every_layout(
    monkeypatch: pytest.MonkeyPatch, layout: str, outputs: int, inputs: int, group: int
) -> None:
    """As vLLM hands them over: it has put AWQ's words into GPTQ's order."""
    monkeypatch.setenv("AERIE_INT4_KERNEL", "aerie")
    torch.manual_seed(0)
    q, scale, zero = quantised(outputs, inputs, group)
    words = pack(q)
    layer = torch.nn.Module()
    if layout.startswith("compressed"):
        layer.words = parameter(words, input_dim=1, output_dim=0, packed_dim=1)
        layer.scales = parameter(scale.float(), input_dim=1, output_dim=0)
    else:
        layer.words = parameter(words.T, input_dim=0, output_dim=1, packed_dim=0)
        layer.scales = parameter(scale.T.float(), input_dim=0, output_dim=1)
    with_zeros = "zero" in layout or layout == "awq"
    if layout.startswith("gptq"):
        # Its first format stores zero points less one; a symmetric layer has them too, and they mean nothing.
        stored = (zero.to(torch.int8) - 1) & 0xF
        layer.zeros = parameter(pack(stored.T), input_dim=0, output_dim=1, packed_dim=1)
    elif with_zeros:
        packed = pack(zero.T).T
        layer.zeros = parameter(packed, input_dim=1, output_dim=0, packed_dim=0)
    weight_type = scalar_types.uint4 if with_zeros else scalar_types.uint4b8
    config = layer_config(shape=(inputs, outputs), group=group, weight=weight_type)
    kernel = AerieW4A16LinearKernel(config, "words", "scales", "zeros")
    kernel.stored_zero_offset = 1 if layout.startswith("gptq") else 0
    kernel.process_weights_after_loading(layer)
    assert getattr(layer, "zeros", None) is None
    x, bias = torch.randn(5, inputs), torch.randn(outputs)
    expected = reference.w4a16_linear(x, q, scale, zero if with_zeros else None, bias)
    error = (kernel.apply_weights(layer, x, bias).double() - expected).norm() / expected.norm()
    assert error < 4e-3


def test_vllm_keeps_16_bit_layers_only_of_shapes_that_its_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AERIE_INT4_KERNEL", raising=False)
    monkeypatch.setattr(vllm_kernel, "stock_operator_exists", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not AerieW4A16LinearKernel.can_implement(layer_config(torch.bfloat16, shape=(128, 64)))[0]
    assert AerieW4A16LinearKernel.can_implement(layer_config(torch.bfloat16, shape=(128, 24)))[0]


def test_configurations_have_vllm_s_names() -> None:
    vllm_linear.register()
    vllm_linear.register()
    for name, config in vllm_config.CONFIGS.items():
        assert get_quantization_config(name) is config


@pytest.mark.parametrize(("choice", "float32"), [("auto", True), ("aerie", True), ("vllm", False)])
def test_awq_and_gptq_take_float32_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, choice: str, float32: bool
) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", choice)
    for config in (vllm_config.AerieAWQConfig, vllm_config.AerieGPTQConfig):
        assert (torch.float32 in config.get_supported_act_dtypes()) is float32
