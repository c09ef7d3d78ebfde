# SPDX-License-Identifier: Apache-2.0
"""The INT4 linear layer for x86 CPUs behind vLLM's mixed-precision interface.

Read against vLLM 0.32.0 and 0.33.0. Imported by `vllm_linear` once a CPU platform is known, for it imports vLLM.
"""

import torch
from vllm.model_executor.kernels.linear import CPUWNA16LinearKernel, MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.platforms import CpuArchEnum, current_platform
from vllm.scalar_type import scalar_types

from aerie.kernels.w4a16_cpu import unsupported
from aerie.kernels.w4a16_cpu.api import w4a16_linear
from aerie.kernels.w4a16_cpu.pack import nibbles, pack_scales, pack_words
from aerie.quant.vllm_linear import kernel_choice

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
        return "AERIE_CPU_INT4=aerie"
    if not stock_operator_exists():
        return "vLLM's extension for this CPU has no INT4 operator"
    if c.act_type == torch.float32:
        return "vLLM's INT4 operator has no float32"
    if stock_serves(c):
        return "without AMX faster than vLLM's at the rows of decoding; AERIE_CPU_INT4=stock forces that"
    return str(CPUWNA16LinearKernel.can_implement(c)[1])


class AerieW4A16LinearKernel(MPLinearKernel):
    """INT4 weights through torch's `_weight_int4pack_mm_for_cpu`, for groups of multiples of 32 or whole channels."""

    stored_zero_offset = 0
    """What is added to zero points as stored; a method whose format stores another value sets it."""

    @classmethod
    def get_min_capability(cls) -> int:
        """CUDA capability; none is needed."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether this kernel is to serve a layer, and the reason when not.

        AERIE_CPU_INT4 decides between kernels that both work: `auto` takes the faster one, `aerie` takes this one,
        `stock` never does.
        """
        if not current_platform.is_cpu() or current_platform.get_cpu_architecture() != CpuArchEnum.X86:
            return False, "AerieW4A16 is for x86 CPUs"
        if c.weight_type not in WEIGHT_TYPES:
            return False, f"AerieW4A16 reads 4-bit weights, not {c.weight_type}"
        if c.act_type not in ACTIVATION_TYPES:
            return False, f"AerieW4A16 takes {ACTIVATION_TYPES}, not {c.act_type}"
        reason = unsupported(c.partition_weight_shape[0], c.group_size)
        if reason is not None:
            return False, f"AerieW4A16: {reason}"
        choice = kernel_choice()
        if choice == "stock":
            return False, "AERIE_CPU_INT4=stock"
        if choice == "auto" and stock_is_faster(c):
            return False, f"vLLM's own kernel serves {c.act_type} on this CPU; AERIE_CPU_INT4=aerie forces AerieW4A16"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Repack a layer's integers and scales, whichever checkpoint format they came from."""
        words, scales, zeros = self._get_weight_params(layer)
        inputs, outputs = self.config.partition_weight_shape
        # GPTQ stores [K/8, N] and [G, N]; compressed-tensors and converted AWQ store [N, K/8] and [N, G].
        words_NW = words.data if getattr(words, "input_dim", 1) == 1 else words.data.T
        scale_NG = scales.data if getattr(scales, "output_dim", 0) == 0 else scales.data.T
        zero_NG = None
        if self.config.zero_points and zeros is not None:
            # Packed along the outputs: unpacking the transpose unpacks those.
            packed_GN = zeros.data.T if getattr(zeros, "output_dim", 0) == 0 else zeros.data
            zero_NG = ((nibbles(packed_GN) + self.stored_zero_offset) & 0xF).T[:outputs]
        if self.w_zp_name is not None and zeros is not None:
            setattr(layer, self.w_zp_name, None)  # in the scales' offsets from here on, or of no meaning
        replace_parameter(layer, self.w_q_name, torch.nn.Parameter(pack_words(words_NW), requires_grad=False))
        packed_scales = torch.nn.Parameter(pack_scales(scale_NG, inputs, zero_NG), requires_grad=False)
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
