# SPDX-License-Identifier: Apache-2.0
"""The INT4 linear layer for x86 CPUs behind vLLM's mixed-precision interface.

Read against vLLM 0.32.0 and 0.33.0. Imported when `vllm_linear` is asked, for it imports vLLM.
"""

import torch
from vllm.model_executor.kernels.linear import CPUWNA16LinearKernel, MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.platforms import CpuArchEnum, current_platform
from vllm.scalar_type import scalar_types

from aerie.kernels.w4a16_cpu import unsupported
from aerie.kernels.w4a16_cpu.api import w4a16_linear
from aerie.kernels.w4a16_cpu.pack import pack_scales, pack_words
from aerie.quant.kernel_choice import CHOICE_VARIABLE, kernel_choice
from aerie.quant.vllm_layout import cut_words, loaded_weight

WEIGHT_TYPES = (scalar_types.uint4b8, scalar_types.uint4)
ACTIVATION_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def stock_operator_exists() -> bool:
    """Whether the extension vLLM loaded on this CPU has its INT4 operator; the one for AVX2 has not."""
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def stock_serves(c: MPLinearLayerConfig) -> bool:
    """Whether vLLM's own CPU kernel runs: where its operator exists, with 16-bit activations.

    Its `can_implement` checks neither, so that the first forward pass would fail.
    """
    if not stock_operator_exists() or c.act_type not in (torch.bfloat16, torch.float16):
        return False
    implements: bool = CPUWNA16LinearKernel.can_implement(c)[0]
    return implements


def stock_is_faster(c: MPLinearLayerConfig) -> bool:
    """Whether vLLM's kernel, where it runs, is the one to take.

    In bfloat16 without AMX ours takes 0.4 to 0.87 of its time at 1 to 16 rows (`ratio_stock_m*` of
    benchmarks/results/int4-cpu.json). Float16 stays with vLLM's, since ours rounds activations to bfloat16.
    """
    return stock_serves(c) and (torch.cpu._is_amx_tile_supported() or c.act_type != torch.bfloat16)


def why_not_stock(c: MPLinearLayerConfig) -> str:
    """Why our kernel and not vLLM's serves a layer that ours can serve."""
    if kernel_choice() == "aerie":
        return f"{CHOICE_VARIABLE}=aerie"
    if not stock_operator_exists():
        return "vLLM's extension for this CPU has no INT4 operator"
    if c.act_type == torch.float32:
        return "vLLM's INT4 operator has no float32"
    if stock_serves(c):
        return f"without AMX faster than vLLM's at the rows of decoding; {CHOICE_VARIABLE}=vllm forces that"
    return str(CPUWNA16LinearKernel.can_implement(c)[1])


class AerieW4A16LinearKernel(MPLinearKernel):
    """INT4 weights through torch's `_weight_int4pack_mm_for_cpu`, for groups of multiples of 32 or whole channels."""

    stored_zero_offset = 0
    """What is added to zero points as stored; a method whose format stores another value sets it."""

    @classmethod
    def is_for_this_platform(cls) -> bool:
        """Whether it may serve on what this vLLM was built for."""
        return current_platform.is_cpu() and current_platform.get_cpu_architecture() == CpuArchEnum.X86

    @classmethod
    def get_min_capability(cls) -> int:
        """CUDA capability; none is needed."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether this kernel is to serve a layer, and the reason when not.

        AERIE_INT4_KERNEL decides between kernels that both work: `auto` takes the faster one, `aerie` takes this one,
        `vllm` never does.
        """
        if not cls.is_for_this_platform():
            return False, "AerieW4A16 is for x86 CPUs"
        if c.weight_type not in WEIGHT_TYPES:
            return False, f"AerieW4A16 reads 4-bit weights, not {c.weight_type}"
        if c.act_type not in ACTIVATION_TYPES:
            return False, f"AerieW4A16 takes {ACTIVATION_TYPES}, not {c.act_type}"
        reason = unsupported(c.partition_weight_shape[0], c.group_size) or cut_words(c)
        if reason is not None:
            return False, f"AerieW4A16: {reason}"
        choice = kernel_choice()
        if choice == "vllm":
            return False, f"{CHOICE_VARIABLE}=vllm"
        if choice == "auto" and stock_is_faster(c):
            return False, f"vLLM's own serves {c.act_type} on this CPU; {CHOICE_VARIABLE}=aerie forces AerieW4A16"
        return True, None

    @classmethod
    def why(cls, chosen: type[MPLinearKernel], c: MPLinearLayerConfig) -> str:
        """Why vLLM chose a kernel for a layer: this one, or one of its own.

        Raises:
            ValueError: the chosen one would fail at the first step.
        """
        if chosen is cls:
            return why_not_stock(c)
        if chosen is CPUWNA16LinearKernel and not stock_serves(c):
            raise ValueError(f"{CHOICE_VARIABLE}=vllm, and its {chosen.__name__} does not run {c.act_type} on this CPU")
        return "vLLM's own runs here with this type"

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Repack a layer's integers and scales, whichever checkpoint format they came from."""
        words, scales, zeros = self._get_weight_params(layer)
        inputs, outputs = self.config.partition_weight_shape
        meant = zeros if self.config.zero_points else None
        loaded = loaded_weight(words, scales, meant, outputs, self.stored_zero_offset)
        if self.w_zp_name is not None and zeros is not None:
            setattr(layer, self.w_zp_name, None)  # in the scales' offsets from here on, or of no meaning
        replace_parameter(layer, self.w_q_name, torch.nn.Parameter(pack_words(loaded.words_NA), requires_grad=False))
        packed_scales = torch.nn.Parameter(pack_scales(loaded.scale_NG, inputs, loaded.zero_NG), requires_grad=False)
        replace_parameter(layer, self.w_s_name, packed_scales)

    def description(self) -> str:
        """What runs, for the log."""
        isa, outside = torch.backends.cpu.get_cpu_capability(), str(self.config.act_type).removeprefix("torch.")
        how = f"torch's _weight_int4pack_mm_for_cpu on {isa}, {outside} outside, bfloat16 inside"
        return f"{type(self).__name__} ({how})"

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Map x [..., K] to [..., N] in its dtype."""
        words, scales, _ = self._get_weight_params(layer)
        return w4a16_linear(x, words, scales, self.config.partition_weight_shape[1], bias)
