# SPDX-License-Identifier: Apache-2.0
"""INT4 mixtures of experts behind vLLM's interface: the formats as it loads them, and the method for x86 CPUs.

The class that vLLM has for each format still creates the parameters that loading fills; packing and the forward pass
are ours. On CPUs vLLM's own needs AMX and 16-bit activations. Read against vLLM 0.32.0 and 0.33.0; imported by
`vllm_config`. The method for GPUs is in `vllm_moe.py`.

Shape suffixes: E experts, N outputs, P outputs padded, K inputs, B bytes of two inputs each, G groups, T tokens,
A experts a token chooses.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from vllm.model_executor.layers.fused_moe import FusedMoEConfig, FusedMoEMethodBase, RoutedExperts, SharedExperts
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig, AutoAWQMoEMethod
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig, AutoGPTQMoEMethod
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_wna16 as packed_moe,
)
from vllm.model_executor.utils import replace_parameter

from aerie.kernels.w4a16_cpu import PER_CHANNEL, unsupported
from aerie.kernels.w4a16_cpu.pack import nibbles
from aerie.kernels.w4a16_moe_cpu.api import w4a16_moe
from aerie.kernels.w4a16_moe_cpu.pack import PackedExperts, pack_experts
from aerie.quant.errors import QuantError
from aerie.quant.formats.awq import ORDER as AWQ_ORDER
from aerie.quant.formats.nibbles import unpack

Expert = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Unsigned integers [N, K], scales [N, G] and zero points [N, G] or None."""


def unsupported_kind(layer: RoutedExperts) -> str | None:
    """Why experts of a layer's kind cannot be served, whatever their sizes; None when they can."""
    config = layer.moe_config
    if config.activation != MoEActivation.SILU or layer.swiglu_limit is not None:
        return f"the activation is {config.activation.value} or clamped, and only plain silu is known"
    if layer.apply_router_weight_on_input:
        return "routing weights are applied to the input"
    if config.has_bias:
        return "experts have biases"
    return "LoRA is on" if config.is_lora_enabled else None


def unsupported_experts(layer: RoutedExperts, group_size: int) -> str | None:
    """Why a layer's experts cannot be served on a CPU, None when they can."""
    config = layer.moe_config
    if (reason := unsupported_kind(layer)) is not None:
        return reason
    for what, inputs in (("hidden", config.hidden_dim), ("inner", config.intermediate_size_per_partition)):
        if (reason := unsupported(inputs, group_size)) is not None:
            return f"{what} size: {reason}"
    return None


@dataclass(frozen=True)
class Format:
    """How a checkpoint format's experts come out of loading."""

    weight: str
    scale: str
    zero: str
    """Names of the parameters, after `w13_` (gate over up) and `w2_` (down)."""
    creator: FusedMoEMethodBase
    """vLLM's method of the format, for its `create_weights`."""
    expert: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Expert]
    """From one expert's words, scales and zero points as loaded."""


class Int4Experts(FusedMoEMethodBase):
    """Packs the experts when they are loaded. How, and how they are run, a subclass says."""

    def __init__(self, moe: FusedMoEConfig, form: Format) -> None:
        super().__init__(moe)
        self.form = form

    def create_weights(self, layer: torch.nn.Module, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 -- vLLM's
        """Register the parameters that loading fills."""
        self.form.creator.create_weights(_routed(layer), *arguments, **options)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Repack gate over up, and down, and let go of what was loaded."""
        experts = _routed(layer)
        if biases := sorted(experts._loaded_expert_biases):
            raise QuantError(
                f"{experts.layer_name}: the checkpoint has {', '.join(biases)}; experts have no biases here"
            )
        for part in ("w13", "w2"):
            words, scales = self.pack(part, self._unpacked(experts, part))
            replace_parameter(experts, f"{part}_{self.form.weight}", words)
            replace_parameter(experts, f"{part}_{self.form.scale}", scales)
            for unused in (f"{part}_{self.form.zero}", f"{part}_bias"):
                if getattr(experts, unused, None) is not None:
                    replace_parameter(experts, unused, None)

    @abstractmethod
    def pack(self, part: str, experts: Iterator[Expert]) -> tuple[torch.Tensor, torch.Tensor]:
        """Integers, and what belongs to groups, of all experts' `w13` (gate over up) or `w2` (down)."""

    def packed(self, layer: RoutedExperts, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        """What `pack` returned of them."""
        return getattr(layer, f"{part}_{self.form.weight}"), getattr(layer, f"{part}_{self.form.scale}")

    def _unpacked(self, layer: RoutedExperts, part: str) -> Iterator[Expert]:
        words_E = getattr(layer, f"{part}_{self.form.weight}").data
        scales_E = getattr(layer, f"{part}_{self.form.scale}").data
        zeros_E = getattr(layer, f"{part}_{self.form.zero}", None)
        for index in range(len(words_E)):
            zeros = None if zeros_E is None else zeros_E.data[index]
            yield self.form.expert(words_E[index], scales_E[index], zeros)

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig | None:
        """What vLLM's kernels would be told; ours needs nothing."""
        return None


class AerieInt4Experts(Int4Experts):
    """The experts on a CPU."""

    def pack(self, part: str, experts: Iterator[Expert]) -> tuple[torch.Tensor, torch.Tensor]:
        """Words [E, P, B], and scales with offsets, into which zero points go, [E, G, P, 2]."""
        return pack_experts(experts)

    def apply(  # type: ignore[override]  # as in vLLM's base class, whose own base has other parameters
        self,
        layer: RoutedExperts,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: SharedExperts | None,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """The routed experts' output [T, H]; vLLM's runner has run the shared ones."""
        ids_TA = topk_ids if layer.expert_map is None else layer.expert_map[topk_ids.long()]
        packed = PackedExperts(*self.packed(layer, "w13"), *self.packed(layer, "w2"))
        return w4a16_moe(x, packed, topk_weights, ids_TA)

    def description(self) -> str:
        """What runs, for the log."""
        isa, outside = torch.backends.cpu.get_cpu_capability(), str(self.moe.in_dtype).removeprefix("torch.")
        how = f"torch's _weight_int4pack_mm_for_cpu, expert by expert, on {isa}, {outside} outside, bfloat16 inside"
        return f"AerieInt4Experts ({how})"


def _routed(layer: torch.nn.Module) -> RoutedExperts:
    if not isinstance(layer, RoutedExperts):
        raise TypeError(f"{type(layer).__name__} holds no experts")
    return layer


class _CompressedTensorsCreator(packed_moe.CompressedTensorsWNA16MoEMethod):
    """Without vLLM's constructor, which ends when vLLM has no kernel; so are the other two."""

    def __init__(self, weights: QuantizationArgs, moe: FusedMoEConfig) -> None:
        FusedMoEMethodBase.__init__(self, moe)
        self.symmetric, self.num_bits, self.strategy = weights.symmetric, weights.num_bits, weights.strategy
        self.packed_factor = Fraction(32, weights.num_bits)
        self.group_size = PER_CHANNEL if weights.group_size is None else weights.group_size


class _GPTQCreator(AutoGPTQMoEMethod):
    def __init__(self, quant_config: AutoGPTQConfig, moe: FusedMoEConfig) -> None:
        FusedMoEMethodBase.__init__(self, moe)
        self.quant_config, self.input_dtype = quant_config, None


class _AWQCreator(AutoAWQMoEMethod):
    def __init__(self, quant_config: AutoAWQConfig, moe: FusedMoEConfig) -> None:
        FusedMoEMethodBase.__init__(self, moe)
        self.quant_config, self.input_dtype = quant_config, None


def compressed_tensors_form(weights: QuantizationArgs, moe: FusedMoEConfig) -> Format:
    """Words [E, N, K/8] packed along the inputs, scales [E, N, G], zero points [E, N/8, G] along the outputs."""

    def expert(words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> Expert:
        return nibbles(words), scales, None if zeros is None else nibbles(zeros.T).T

    creator = _CompressedTensorsCreator(weights, moe)
    return Format("weight_packed", "weight_scale", "weight_zero_point", creator, expert)


def gptq_form(quant_config: AutoGPTQConfig, moe: FusedMoEConfig) -> Format:
    """Words [E, K/8, N] packed along the inputs, scales [E, G, N], zero points [E, G, N/8] along the outputs."""
    offset = stored_zero_offset(quant_config)

    def expert(words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> Expert:
        # A symmetric checkpoint has zero points too, and they mean nothing.
        meant = None if quant_config.is_sym else zeros
        return nibbles(words.T), scales.T, None if meant is None else ((nibbles(meant) + offset) & 0xF).T

    return Format("qweight", "scales", "qzeros", _GPTQCreator(quant_config, moe), expert)


def awq_form(quant_config: AutoAWQConfig, moe: FusedMoEConfig) -> Format:
    """Words [E, K, N/8], scales [E, G, N], zero points [E, G, N/8]; packed along the outputs, in AWQ's order."""

    def expert(words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> Expert:
        meant = zeros if quant_config.zero_point else None
        return unpack(words, AWQ_ORDER).T, scales.T, None if meant is None else unpack(meant, AWQ_ORDER).T

    return Format("qweight", "scales", "qzeros", _AWQCreator(quant_config, moe), expert)


def stored_zero_offset(config: AutoGPTQConfig) -> int:
    """What is added to a GPTQ checkpoint's zero points: its first format stores them less one."""
    return 0 if config.full_config.get("checkpoint_format") == "gptq_v2" else 1
