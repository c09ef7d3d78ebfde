# SPDX-License-Identifier: Apache-2.0
"""vLLM's INT4 checkpoint formats on x86 CPUs: what its configurations refuse or leave without a kernel there.

They are registered under vLLM's own names, by its public `register_quantization_config`, and change, on CPUs only:
* mixtures of experts, for which vLLM has no kernel without AMX (NotImplementedError in its `oracle/int_wna16.py`);
* float32 activations, which vLLM's AWQ and GPTQ refuse, though a CPU is served in float32;
* GPTQ with groups other than 32, 64 and 128, which are limits of a GPU's kernel, and with zero points.
Read against vLLM 0.32.0 and 0.33.0; imported by `vllm_linear` once a CPU platform is known.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
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
from aerie.quant.vllm_experts import (
    AWQExperts,
    CompressedTensorsExperts,
    GPTQExperts,
    stored_zero_offset,
    unsupported_experts,
)
from aerie.quant.vllm_kernel import AerieW4A16LinearKernel
from aerie.quant.vllm_linear import kernel_choice, stock_experts_serve

# A child of vLLM's logger, for that is the one vLLM gives a handler in its worker processes.
logger = logging.getLogger("vllm.aerie.int4")
Method = QuantizeMethodBase | None


def choose_experts(
    layer: RoutedExperts,
    prefix: str,
    group_size: int,
    ours: Callable[[], FusedMoEMethodBase],
    stock: Callable[[], Method],
) -> Method:
    """Our method or vLLM's, as AERIE_CPU_INT4 and the CPU have it.

    Raises:
        QuantError: the experts are of a kind that ours does not know.
    """
    choice = kernel_choice()
    if choice == "stock":
        return stock()
    dtype = layer.moe_config.in_dtype
    if choice == "auto" and stock_experts_serve(dtype):
        try:
            return stock()
        except (NotImplementedError, ValueError) as error:
            logger.info("%s: vLLM has no kernel for these experts (%s), so ours serves them", prefix, error)
    if (reason := unsupported_experts(layer, group_size)) is not None:
        raise QuantError(f"{prefix}: INT4 experts cannot be served on this CPU: {reason}")
    return ours()


class AerieCompressedTensorsConfig(CompressedTensorsConfig):
    """`pack-quantized` with 4 bits; everything else is vLLM's."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Method:
        """How vLLM is to serve a layer."""

        def stock() -> Method:
            return CompressedTensorsConfig.get_quant_method(self, layer, prefix)

        if not isinstance(layer, RoutedExperts) or (weights := self._int4(layer, prefix)) is None:
            return stock()
        group_size = PER_CHANNEL if weights.group_size is None else weights.group_size

        def ours() -> FusedMoEMethodBase:
            return CompressedTensorsExperts(weights, layer.moe_config)

        return choose_experts(layer, prefix, group_size, ours, stock)

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


class AerieAWQConfig(AutoAWQConfig):
    """AWQ with float32 activations and with experts."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Types of activations."""
        return _with_float32(super().get_supported_act_dtypes())

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Method:
        """How vLLM is to serve a layer."""

        def stock() -> Method:
            return AutoAWQConfig.get_quant_method(self, layer, prefix)

        if not isinstance(layer, RoutedExperts) or is_layer_skipped(
            prefix, self.modules_to_not_convert, match_mode="substring"
        ):
            return stock()
        if self.group_size == PER_CHANNEL:
            raise QuantError(f"{prefix}: vLLM cannot load AWQ experts with one scale an output")

        def ours() -> FusedMoEMethodBase:
            return AWQExperts(self, layer.moe_config)

        return choose_experts(layer, prefix, self.group_size, ours, stock)


class AerieGPTQLinearMethod(AutoGPTQLinearMethod):
    """vLLM's, with zero points, and without its question whether a GPU's kernel would take the groups."""

    def __init__(self, quant_config: AutoGPTQConfig) -> None:
        self.quant_config = quant_config
        self.input_dtype = None
        self.quant_type = quant_config.quant_type

    def create_weights(self, layer: torch.nn.Module, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 -- vLLM's
        """Register the parameters that loading fills."""
        super().create_weights(layer, *arguments, **options)
        if not self.quant_config.is_sym:
            # vLLM's class says "no zero points" to whichever kernel it chose.
            config = replace(self.kernel.config, zero_points=True)
            self.kernel = AerieW4A16LinearKernel(config, "qweight", "scales", "qzeros")
            self.kernel.stored_zero_offset = stored_zero_offset(self.quant_config)


class AerieGPTQConfig(AutoGPTQConfig):
    """GPTQ with float32 activations, with groups of any size, with zero points and with experts."""

    TYPE_MAP = AutoGPTQConfig.TYPE_MAP | {(4, False): scalar_types.uint4}

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Types of activations."""
        return _with_float32(super().get_supported_act_dtypes())

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Method:
        """How vLLM is to serve a layer."""

        def stock() -> Method:
            if self.weight_bits == 4 and not self.is_sym:
                raise NotImplementedError("vLLM's GPTQ has no zero points")
            return AutoGPTQConfig.get_quant_method(self, layer, prefix)

        if kernel_choice() == "stock" or self.weight_bits != 4:
            return stock()
        if not isinstance(layer, RoutedExperts):
            linear: Method = get_linear_quant_method(self, layer, prefix, AerieGPTQLinearMethod)
            return linear

        def ours() -> FusedMoEMethodBase:
            experts: FusedMoEMethodBase = get_moe_quant_method(self, layer, prefix, GPTQExperts)
            return experts

        return choose_experts(layer, prefix, self.group_size, ours, stock)


def _with_float32(dtypes: list[torch.dtype]) -> list[torch.dtype]:
    return dtypes if kernel_choice() == "stock" else [*dtypes, torch.float32]


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
