# SPDX-License-Identifier: Apache-2.0
"""Which method vLLM is given for INT4 experts, and that ours reads every format as vLLM's loader leaves it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.platforms import current_platform

from aerie.kernels.w4a16_cpu.reference import dequantise
from aerie.kernels.w4a16_moe_cpu import reference
from aerie.quant import vllm_config
from aerie.quant.errors import QuantError
from aerie.quant.vllm_experts import AerieInt4Experts, Int4Experts
from aerie.quant.vllm_moe import AerieInt4MoeExperts

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the experts are for CPUs")
EXPERTS, HIDDEN, INNER, GROUP = 3, 128, 192, 64
PREFIX = "model.layers.0.mlp.experts"
TOLERANCE = 8e-3
"""As in tests/kernels: what is rounded to bfloat16 on the way."""


class FakeRoutedExperts(RoutedExperts):
    """A layer of experts as a method sees it, without an engine around it; formats match it by its name."""

    def __init__(self, dtype: torch.dtype = torch.float32, **changes: object) -> None:
        torch.nn.Module.__init__(self)
        config: dict[str, object] = {
            "activation": MoEActivation.SILU,
            "is_act_and_mul": True,
            "w13_num_shards": 2,
            "has_bias": False,
            "is_lora_enabled": False,
            "in_dtype": dtype,
            "hidden_dim": HIDDEN,
            "intermediate_size_per_partition": INNER,
            "num_local_experts": EXPERTS,
            "moe_parallel_config": SimpleNamespace(use_all2all_kernels=bool(changes.pop("use_all2all_kernels", False))),
        }
        moe: Any = SimpleNamespace(**{name: changes.get(name, value) for name, value in config.items()})
        self.moe_config = moe
        self.layer_name = PREFIX
        self.ckpt_gate_proj_name, self.ckpt_up_proj_name, self.ckpt_down_proj_name = "gate_proj", "up_proj", "down_proj"
        self.swiglu_limit = None
        self.apply_router_weight_on_input = bool(changes.get("apply_router_weight_on_input", False))
        self._loaded_expert_biases = set()
        self._expert_map = None


def compressed_config(group: int | None = GROUP, symmetric: bool = True, bits: int = 4) -> QuantizationConfig:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group else "channel",
        "group_size": group,
        "dynamic": False,
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups, "ignore": []}
    return vllm_config.AerieCompressedTensorsConfig.from_config(config)


def gptq_config(symmetric: bool = True, group: int = GROUP, **more: object) -> QuantizationConfig:
    config = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": symmetric, **more}
    return vllm_config.AerieGPTQConfig.from_config(config)


def awq_config(group: int = GROUP, **more: object) -> QuantizationConfig:
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm", **more}
    return vllm_config.AerieAWQConfig.from_config(config)


def pack(q_RC: torch.Tensor) -> torch.Tensor:
    """Unsigned 4-bit integers as int32 words of eight, the first in the lowest bits."""
    eights = q_RC.to(torch.int32).view(len(q_RC), -1, 8) << torch.arange(0, 32, 4, dtype=torch.int32)
    return eights.sum(-1, dtype=torch.int32)


def pack_awq(q_KN: torch.Tensor) -> torch.Tensor:
    """Along the outputs; nibble i of a word holds output (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    return pack(q_KN.unflatten(1, (-1, 8))[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1))


def fill(layer: torch.nn.Module, form: str, part: str, expert: int, weight: tuple[torch.Tensor, ...]) -> None:
    """Write one expert's integers, scales and zero points as a checkpoint of that format has them."""
    q, scale, zero = weight
    if form.startswith("compressed"):
        tensors = {"weight_packed": pack(q), "weight_scale": scale, "weight_zero_point": pack(zero.T).T}
    elif form.startswith("gptq"):
        less = 0 if "v2" in form else 1
        stored = (zero.to(torch.int8) - less) & 0xF
        tensors = {"qweight": pack(q).T, "scales": scale.T, "qzeros": pack(stored.T)}
    else:
        tensors = {"qweight": pack_awq(q.T), "scales": scale.T, "qzeros": pack_awq(zero.T)}
    for name, tensor in tensors.items():
        parameter = getattr(layer, f"{part}_{name}", None)
        if parameter is not None:
            assert parameter.data[expert].shape == tensor.shape
            parameter.data[expert] = tensor.to(parameter.dtype)


FORMATS: dict[str, tuple[Callable[[], QuantizationConfig], bool]] = {
    "compressed-tensors": (compressed_config, False),
    "compressed-tensors with zero points": (lambda: compressed_config(symmetric=False), True),
    "compressed-tensors by channel": (lambda: compressed_config(group=None), False),
    "gptq": (gptq_config, False),
    "gptq with zero points": (lambda: gptq_config(symmetric=False), True),
    "gptq v2 with zero points": (lambda: gptq_config(symmetric=False, checkpoint_format="gptq_v2"), True),
    "gptq by channel": (lambda: gptq_config(group=-1), False),
    "awq": (awq_config, True),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("ours", "dtype"),
    [
        (AerieInt4Experts, torch.float32),
        (AerieInt4Experts, torch.bfloat16),
        (AerieInt4MoeExperts, torch.bfloat16),
        (AerieInt4MoeExperts, torch.float16),
    ],
    ids=str,
)
def test_reads_every_format(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    ours: type[Int4Experts],
    dtype: torch.dtype,
) -> None:
    if ours is AerieInt4MoeExperts:
        request.getfixturevalue("gpu_class")
    monkeypatch.setenv("AERIE_INT4_KERNEL", "aerie")
    torch.manual_seed(0)
    make, with_zeros = FORMATS[form]
    layer = FakeRoutedExperts(dtype)
    method = make().get_quant_method(layer, PREFIX)
    assert type(method) is ours
    assert isinstance(method, AerieInt4Experts | AerieInt4MoeExperts)
    assert not method.is_monolithic
    layer.quant_method = method
    method.create_weights(layer, EXPERTS, HIDDEN, INNER, dtype, weight_loader=None)
    dense: dict[str, list[torch.Tensor]] = {"w13": [], "w2": []}
    for part, outputs, inputs in (("w13", 2 * INNER, HIDDEN), ("w2", HIDDEN, INNER)):
        groups = 1 if "channel" in form else inputs // GROUP
        for expert in range(EXPERTS):
            q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
            scale = torch.exp2(torch.randint(-6, -4, (outputs, groups)).float())  # exact in every type
            zero = torch.randint(0, 16, scale.shape, dtype=torch.uint8)
            fill(layer, form, part, expert, (q, scale, zero))
            dense[part].append(dequantise(q, scale, zero if with_zeros else None))
    method.process_weights_after_loading(layer)
    x = torch.randn(5, HIDDEN).to(dtype)
    ids = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(5)]).to(torch.int32)
    weights = torch.rand(5, 2)
    y = method.apply(layer, x, weights, ids, None, None)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == dtype
    expected = reference.w4a16_moe(x, torch.stack(dense["w13"]), torch.stack(dense["w2"]), weights, ids)
    assert (y.double() - expected).norm() / expected.norm() < TOLERANCE
    # vLLM's runner is traced through on CPUs.
    torch.compiler.reset()
    compiled = torch.compile(method.apply, fullgraph=True, backend="eager")
    assert torch.equal(compiled(layer, x, weights, ids, None, None), y)
    # What is resident: half a byte a weight, and what belongs to its group.
    names = {name for name, parameter in layer.named_parameters() if parameter.numel() > 2 * EXPERTS}
    assert len(names) == 4


def stock_says(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """Replace vLLM's own answer for experts, which depends on the machine."""

    def get_quant_method(*_: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    for base in ("CompressedTensorsConfig", "AutoAWQConfig", "AutoGPTQConfig"):
        monkeypatch.setattr(getattr(vllm_config, base), "get_quant_method", get_quant_method)


THEIRS = object()
"""A method of vLLM's."""
NONE_OF_THEIRS = NotImplementedError("No WNA16 MoE backend supports the deployment configuration.")


@pytest.mark.parametrize("make", [compressed_config, gptq_config, awq_config])
@pytest.mark.parametrize(
    ("choice", "amx", "dtype", "answer", "ours"),
    [
        ("auto", False, torch.bfloat16, THEIRS, True),
        ("auto", True, torch.bfloat16, THEIRS, False),
        ("auto", True, torch.bfloat16, NONE_OF_THEIRS, True),
        ("auto", True, torch.float32, THEIRS, True),
        ("auto", True, torch.float16, THEIRS, True),
        ("aerie", True, torch.bfloat16, THEIRS, True),
        ("vllm", False, torch.float32, THEIRS, False),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], QuantizationConfig],
    choice: str,
    amx: bool,
    dtype: torch.dtype,
    answer: object,
    ours: bool,
) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", choice)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    stock_says(monkeypatch, answer)
    method = make().get_quant_method(FakeRoutedExperts(dtype), PREFIX)
    assert isinstance(method, AerieInt4Experts) is ours


def test_what_vllm_refuses_stays_refused_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", "vllm")
    stock_says(monkeypatch, NONE_OF_THEIRS)
    with pytest.raises(NotImplementedError):
        compressed_config().get_quant_method(FakeRoutedExperts(), PREFIX)
    with pytest.raises(NotImplementedError, match="no zero points"):
        gptq_config(symmetric=False).get_quant_method(FakeRoutedExperts(), PREFIX)


@pytest.mark.parametrize("config", [compressed_config(bits=8), awq_config(modules_to_not_convert=["mlp.experts"])])
def test_what_is_not_int4_is_left_to_vllm(monkeypatch: pytest.MonkeyPatch, config: QuantizationConfig) -> None:
    stock_says(monkeypatch, THEIRS)
    assert config.get_quant_method(FakeRoutedExperts(), PREFIX) is THEIRS


@pytest.mark.parametrize(
    ("config", "changes", "word"),
    [
        (compressed_config(), {"hidden_dim": 80}, "hidden size: 80 inputs are no multiple of the group size 64"),
        (awq_config(), {"intermediate_size_per_partition": 40}, "inner size: 40 inputs"),
        (gptq_config(group=16), {}, "group size 16"),
        (compressed_config(), {"activation": MoEActivation.GELU}, "gelu"),
        (compressed_config(), {"has_bias": True}, "biases"),
        (gptq_config(), {"apply_router_weight_on_input": True}, "applied to the input"),
        (awq_config(group=-1), {}, "one scale an output"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, config: QuantizationConfig, changes: dict[str, object], word: str
) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", "aerie")
    with pytest.raises(QuantError, match=word) as refused:
        config.get_quant_method(FakeRoutedExperts(torch.float32, **changes), PREFIX)
    assert str(refused.value).startswith(f"{PREFIX}: ")


def test_biases_that_only_the_checkpoint_has_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", "aerie")
    layer = FakeRoutedExperts()
    method = gptq_config().get_quant_method(layer, PREFIX)
    assert isinstance(method, AerieInt4Experts)
    method.create_weights(layer, EXPERTS, HIDDEN, INNER, torch.float32, weight_loader=None)
    layer._loaded_expert_biases.add("w2_bias")
    with pytest.raises(QuantError, match=f"{PREFIX}: .*w2_bias"):
        method.process_weights_after_loading(layer)


@pytest.mark.usefixtures("gpu_class")
@pytest.mark.parametrize("make", [compressed_config, gptq_config, awq_config])
@pytest.mark.parametrize(
    ("choice", "dtype", "changes", "ours"),
    [
        ("aerie", torch.bfloat16, {}, True),
        ("auto", torch.bfloat16, {}, False),
        ("vllm", torch.bfloat16, {}, False),
        ("aerie", torch.float32, {}, False),
        ("aerie", torch.bfloat16, {"activation": MoEActivation.GELU}, False),
        ("aerie", torch.bfloat16, {"use_all2all_kernels": True}, False),
        ("aerie", torch.bfloat16, {"intermediate_size_per_partition": 96}, False),
    ],
)
def test_on_a_gpu_what_ours_does_not_take_is_vllm_s(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], QuantizationConfig],
    choice: str,
    dtype: torch.dtype,
    changes: dict[str, object],
    ours: bool,
) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", choice)
    stock_says(monkeypatch, THEIRS)
    method = make().get_quant_method(FakeRoutedExperts(dtype, **changes), PREFIX)
    assert (type(method) is AerieInt4MoeExperts) is ours
    assert (method is THEIRS) is not ours
