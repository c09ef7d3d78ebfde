# SPDX-License-Identifier: Apache-2.0
"""vLLM's INT4 checkpoint formats: what its configurations refuse, or keep from our kernels, though these serve it.

They are registered under vLLM's own names, by its public `register_quantization_config`, and change on x86 CPUs:
* mixtures of experts, for which vLLM has no kernel without AMX (NotImplementedError in its `oracle/int_wna16.py`);
* float32 activations, which vLLM's AWQ and GPTQ refuse, though a CPU is served in float32;
* GPTQ with groups other than 32, 64 and 128, which are limits of a GPU's kernel, and with zero points;
* GPTQ whose `dynamic` rules name parts of what vLLM fuses, as GPTQModel writes them, on every device.
On CUDA GPUs, where AERIE_INT4_KERNEL lets our kernel serve, what vLLM would not ask any kernel about: AWQ and GPTQ with
groups that Marlin does not take, and GPTQ with zero points. All else is vLLM's there.
Read against vLLM 0.32.0 and 0.33.0; imported by `vllm_linear` once the platform is known.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
from vllm.model_executor.layers.fused_moe import FusedMoEConfig, RoutedExperts
from vllm.model_executor.layers.linear import register_weight_loader_v2_supported_method
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.auto_awq import (
    AutoAWQConfig,
    AutoAWQLinearMethod,
    AutoAWQMarlinLinearMethod,
)
from vllm.model_executor.layers.quantization.auto_gptq import (
    AutoGPTQConfig,
    AutoGPTQLinearMethod,
    get_moe_quant_method,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.utils.gptq_utils import get_linear_quant_method
from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped
from vllm.scalar_type import scalar_types

from aerie.kernels.w4a16_cpu import PER_CHANNEL
from aerie.quant.errors import QuantError
from aerie.quant.kernel_choice import kernel_choice
from aerie.quant.vllm_dynamic import by_rules
from aerie.quant.vllm_experts import (
    AerieInt4Experts,
    Format,
    awq_form,
    compressed_tensors_form,
    gptq_form,
    stored_zero_offset,
    unsupported_experts,
)
from aerie.quant.vllm_kernel import AerieW4A16LinearKernel
from aerie.quant.vllm_linear import own_kernel, stock_experts_serve
from aerie.quant.vllm_moe import AerieInt4MoeExperts, ours_serves, sizes

# A child of vLLM's logger, for that is the one vLLM gives a handler in its worker processes.
logger = logging.getLogger("vllm.aerie.int4")
Method = QuantizeMethodBase | None


def on_cpu() -> bool:
    """Whether our kernels here are those for CPUs."""
    return own_kernel() is AerieW4A16LinearKernel


def choose_experts(
    layer: RoutedExperts, prefix: str, group_size: int, form: Callable[[], Format], stock: Callable[[], Method]
) -> Method:
    """Our method or vLLM's, as AERIE_INT4_KERNEL and the machine have it.

    Args:
        layer: the experts.
        prefix: the name of the layer.
        group_size: of its weights; PER_CHANNEL for one scale an output.
        form: how they come out of loading.
        stock: makes the method of vLLM.

    Raises:
        QuantError: the experts are of a kind that ours for CPUs does not know.
    """
    choice = kernel_choice()
    if choice == "vllm":
        return stock()
    if not on_cpu():
        ours, why = ours_serves(sizes(layer, group_size), layer)
        if ours:
            return AerieInt4MoeExperts(layer.moe_config, form(), group_size, why)
        say_once(f"vLLM's own kernel serves INT4 experts: {why}")
        return stock()
    if choice == "auto" and stock_experts_serve(layer.moe_config.in_dtype):
        try:
            return stock()
        except (NotImplementedError, ValueError) as error:
            logger.info("%s: vLLM has no kernel for these experts (%s), so ours serves them", prefix, error)
    if (reason := unsupported_experts(layer, group_size)) is not None:
        raise QuantError(f"{prefix}: INT4 experts cannot be served on this CPU: {reason}")
    return AerieInt4Experts(layer.moe_config, form())


@cache
def say_once(line: str) -> None:
    """Log a line that every layer would repeat."""
    logger.info(line)


class AerieCompressedTensorsConfig(CompressedTensorsConfig):
    """`pack-quantized` with 4 bits; everything else is vLLM's."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Method:
        """How vLLM is to serve a layer."""

        def stock() -> Method:
            return CompressedTensorsConfig.get_quant_method(self, layer, prefix)

        if not isinstance(layer, RoutedExperts) or (weights := self._int4(layer, prefix)) is None:
            return stock()
        group_size = PER_CHANNEL if weights.group_size is None else weights.group_size

        def form() -> Format:
            return compressed_tensors_form(weights, layer.moe_config)

        return choose_experts(layer, prefix, group_size, form, stock)

    def _int4(self, layer: RoutedExperts, prefix: str) -> Any:  # noqa: ANN401 -- compressed-tensors carries no types
        """The scheme of a layer's experts when all are weight-only INT4, else None, and vLLM decides."""
        CompressedTensorsConfig._add_fused_moe_to_target_scheme_map(self)
        names = (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name)
        schemes = [self.get_scheme_dict(layer, f"{prefix}.0.{name}") for name in names]
        first: dict[str, Any] = schemes[0] or {}
        if any(scheme != first for scheme in schemes) or first.get("format") != "pack-quantized":
            return None
        weights, inputs = first["weights"], first["input_activations"]
        four = self._is_wNa16_group_channel(weights, inputs) and weights.num_bits == 4
        return weights if four and weights.type == "int" else None


@register_weight_loader_v2_supported_method
class AerieAWQLinearMethod(AutoAWQMarlinLinearMethod):
    """vLLM's, which asks its kernels, without its question whether Marlin would take the groups."""

    def __init__(self, quant_config: AutoAWQConfig) -> None:
        self.quant_config, self.quant_type, self.input_dtype = quant_config, quant_config.quant_type, None


class AerieAWQConfig(AutoAWQConfig):
    """AWQ with float32 activations and with experts on CPUs, with more sizes of groups on GPUs."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Types of activations."""
        return with_float32(super().get_supported_act_dtypes())

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Method:
        """How vLLM is to serve a layer."""

        def stock() -> Method:
            return AutoAWQConfig.get_quant_method(self, layer, prefix)

        if not isinstance(layer, RoutedExperts):
            method = stock()
            # With that one, for what Marlin does not take, vLLM asks no kernel.
            alone = isinstance(method, AutoAWQLinearMethod) and self.zero_point
            return AerieAWQLinearMethod(self) if alone and ours_is_chosen(layer, self) else method
        if is_layer_skipped(prefix, self.modules_to_not_convert, match_mode="substring"):
            return stock()
        if self.group_size == PER_CHANNEL:
            raise QuantError(f"{prefix}: vLLM cannot load AWQ experts with one scale an output")

        def form() -> Format:
            return awq_form(self, layer.moe_config)

        return choose_experts(layer, prefix, self.group_size, form, stock)


@register_weight_loader_v2_supported_method
class AerieGPTQLinearMethod(AutoGPTQLinearMethod):
    """vLLM's, with zero points, and without its question whether a GPU's kernel would take the groups."""

    def __init__(self, quant_config: AutoGPTQConfig) -> None:
        self.quant_config = quant_config
        self.input_dtype = None
        self.quant_type = quant_config.quant_type

    def create_weights(self, layer: torch.nn.Module, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 -- vLLM's
        """Register the parameters that loading fills."""
        super().create_weights(layer, *arguments, **options)
        if not self.quant_config.is_sym and (ours := own_kernel()) is not None:
            # vLLM's class says "no zero points" to whichever kernel it chose.
            config = replace(self.kernel.config, zero_points=True)
            self.kernel = ours(config, "qweight", "scales", "qzeros")
            self.kernel.stored_zero_offset = stored_zero_offset(self.quant_config)


class AerieGPTQConfig(AutoGPTQConfig):
    """GPTQ with groups of any size that our kernel takes and with zero points; on CPUs in float32 and with experts."""

    TYPE_MAP = AutoGPTQConfig.TYPE_MAP | {(4, False): scalar_types.uint4}

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Types of activations."""
        return with_float32(super().get_supported_act_dtypes())

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Method:
        """How vLLM is to serve a layer."""
        if self.dynamic:
            return by_rules(self, layer, prefix)

        def stock() -> Method:
            if self.weight_bits == 4 and not self.is_sym:
                raise NotImplementedError("vLLM's GPTQ has no zero points; AERIE_INT4_KERNEL=aerie serves them")
            return AutoGPTQConfig.get_quant_method(self, layer, prefix)

        if kernel_choice() == "vllm" or self.weight_bits != 4:
            return stock()
        if not isinstance(layer, RoutedExperts) and not on_cpu():
            return self._on_gpu(layer, prefix, stock)
        if not isinstance(layer, RoutedExperts):
            linear: Method = get_linear_quant_method(self, layer, prefix, AerieGPTQLinearMethod)
            return linear

        def experts(config: AutoGPTQConfig, moe: FusedMoEConfig) -> Method:
            return choose_experts(layer, prefix, config.group_size, lambda: gptq_form(config, moe), stock)

        chosen: Method = get_moe_quant_method(self, layer, prefix, experts)  # type: ignore[arg-type]  # it calls it
        return chosen

    def _on_gpu(self, layer: torch.nn.Module, prefix: str, stock: Callable[[], Method]) -> Method:
        """The method of vLLM, which asks our kernel first, or for what vLLM refuses ours, where our kernel serves."""
        try:
            return stock()
        except (NotImplementedError, ValueError) as refusal:
            reason = refusal

        def method(config: AutoGPTQConfig) -> AerieGPTQLinearMethod:
            if not ours_is_chosen(layer, config):
                raise reason
            return AerieGPTQLinearMethod(config)

        linear: Method = get_linear_quant_method(self, layer, prefix, method)  # type: ignore[arg-type]  # it calls it
        return linear


def ours_is_chosen(layer: torch.nn.Module, config: AutoAWQConfig | AutoGPTQConfig) -> bool:
    """Whether vLLM would choose our kernel for a linear layer, if it asked."""
    full: Any = layer
    inputs = getattr(layer, "input_size_per_partition", full.input_size)
    outputs = getattr(layer, "output_size_per_partition", full.output_size)
    asked = MPLinearLayerConfig(
        full_weight_shape=(full.input_size, full.output_size),
        partition_weight_shape=(inputs, outputs),
        weight_type=config.quant_type,
        act_type=getattr(layer, "params_dtype", torch.get_default_dtype()),
        group_size=config.group_size,
        zero_points=config.quant_type == scalar_types.uint4,
    )
    try:
        return choose_mp_linear_kernel(asked) is own_kernel()
    except ValueError:
        return False


def with_float32(dtypes: list[torch.dtype]) -> list[torch.dtype]:
    """Types of activations that a configuration of vLLM's allows, and float32 where our kernels for CPUs serve."""
    ours = on_cpu() and kernel_choice() != "vllm"
    return [*dtypes, torch.float32] if ours else dtypes


CONFIGS: Mapping[str, type[QuantizationConfig]] = {
    "compressed-tensors": AerieCompressedTensorsConfig,
    "awq": AerieAWQConfig,
    "auto_awq": AerieAWQConfig,
    "awq_marlin": AerieAWQConfig,
    "gptq": AerieGPTQConfig,
    "auto_gptq": AerieGPTQConfig,
    "gptq_marlin": AerieGPTQConfig,
}
"""By vLLM's names for a checkpoint's `quant_method`."""


def register() -> None:
    """Take vLLM's names; the last to do so has them, and doing it again changes nothing."""
    for name, config in CONFIGS.items():
        register_quantization_config(name)(config)
