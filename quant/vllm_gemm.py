# SPDX-License-Identifier: Apache-2.0
"""The INT4 linear layer for CUDA GPUs behind vLLM's mixed-precision interface: `kernels/int4_gemm`.

Read against vLLM 0.32.0 and 0.33.0. Imported when `vllm_linear` is asked, for it imports vLLM.
"""

from typing import ClassVar

import torch
from vllm import envs
from vllm.model_executor.kernels.linear import MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import scalar_types

from aerie.kernels.int4_gemm import operator_group, unsupported
from aerie.kernels.int4_gemm.api import DTYPES, int4_gemm
from aerie.kernels.int4_gemm.pack import PackedWeight, nibbles, pack
from aerie.kernels.int4_gemm.tuning import TABLES, measured_ahead
from aerie.quant.kernel_choice import CHOICE_VARIABLE, kernel_choice
from aerie.quant.vllm_layout import cut_group, cut_words, loaded_weight

WEIGHT_TYPES = (scalar_types.uint4b8, scalar_types.uint4)
CONTROL = "int4_control"
"""The buffer of a layer that holds the operator's mask and counters."""


def unsupported_layer(c: MPLinearLayerConfig) -> str | None:
    """Why the operator cannot serve a layer, as one rank holds it; None when it can."""
    inputs, _ = c.partition_weight_shape
    if c.weight_type not in WEIGHT_TYPES:
        return f"it reads 4-bit weights, not {c.weight_type}"
    if c.act_type not in DTYPES:
        return f"it takes {' and '.join(map(str, DTYPES))}, not {c.act_type}"
    if c.out_type not in (None, c.act_type):
        return f"its results are in {c.act_type}, as its inputs, not in {c.out_type}"
    if (reason := unsupported(inputs, c.group_size)) is not None:
        return reason
    return cut_group(inputs, c.group_size) or cut_words(c)


def measured(c: MPLinearLayerConfig) -> tuple[bool, str]:
    """Whether a committed measurement on this GPU shows the operator ahead for a layer, and in words which."""
    gpu = current_platform.get_device_name()
    inputs, outputs = c.partition_weight_shape
    result = measured_ahead(TABLES, gpu, (outputs, inputs, c.group_size, 1))
    return result is not None, f"{'no committed measurement' if result is None else result} shows it ahead on {gpu}"


class AerieInt4GemmLinearKernel(MPLinearKernel):
    """INT4 weights through `aerie::int4_gemm`, for groups of multiples of 64 or whole channels."""

    platforms: ClassVar[tuple[PlatformEnum, ...]] = (PlatformEnum.CUDA,)
    """Where it serves. The operator runs on CPUs too, slowly, by which tests see what they can of this class."""
    stored_zero_offset = 0
    """What is added to zero points as stored; a method whose format stores another value sets it."""

    @classmethod
    def is_for_this_platform(cls) -> bool:
        """Whether it may serve on what this vLLM was built for."""
        return current_platform._enum in cls.platforms

    @classmethod
    def get_min_capability(cls) -> int:
        """CUDA capability: the first with bfloat16 products."""
        return 80

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether this kernel is to serve a layer, and the reason when not.

        AERIE_INT4_KERNEL decides: `auto` takes it for layers for which it was measured ahead on this GPU, `aerie` for
        all that it can serve, `vllm` for none.
        """
        if not cls.is_for_this_platform():
            return False, "int4_gemm is for CUDA GPUs"
        if (reason := unsupported_layer(c)) is not None:
            return False, f"int4_gemm: {reason}"
        if envs.VLLM_BATCH_INVARIANT:
            return False, "int4_gemm: past 16 rows a row's result depends on how many there are"
        choice = kernel_choice()
        if choice == "vllm":
            return False, f"{CHOICE_VARIABLE}=vllm"
        if choice == "auto" and not (found := measured(c))[0]:
            return False, f"int4_gemm: {found[1]}; {CHOICE_VARIABLE}=aerie takes it all the same"
        return True, None

    @classmethod
    def why(cls, chosen: type[MPLinearKernel], c: MPLinearLayerConfig) -> str:
        """Why vLLM chose a kernel for a layer: this one, or one of its own."""
        if chosen is cls:
            return f"{CHOICE_VARIABLE}=aerie" if kernel_choice() == "aerie" else measured(c)[1]
        return f"vLLM's first choice here; {cls.can_implement(c)[1]}"

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Repack a layer, whichever checkpoint format it came from, and let go of what was loaded."""
        words, scales, zeros = self._get_weight_params(layer)
        inputs, outputs = self.config.partition_weight_shape
        # GPTQ has zero points in a symmetric layer too, where they mean nothing.
        meant = zeros if self.config.zero_points else None
        loaded = loaded_weight(words, scales, meant, outputs, self.stored_zero_offset)
        q_NK = nibbles(loaded.words_NA)[:, :inputs]
        packed = pack(q_NK, loaded.scale_NG, loaded.zero_NG, self.config.group_size)
        if self.w_zp_name is not None and zeros is not None:
            setattr(layer, self.w_zp_name, None)
        replace_parameter(layer, self.w_q_name, torch.nn.Parameter(packed.words_TNW, requires_grad=False))
        replace_parameter(layer, self.w_s_name, torch.nn.Parameter(packed.tables_TRN, requires_grad=False))
        layer.register_buffer(CONTROL, packed.control, persistent=False)
        self.scale_dtype = packed.scale_dtype

    def description(self) -> str:
        """What runs, for the log."""
        dtype = str(self.config.act_type).removeprefix("torch.")
        return f"{type(self).__name__} (aerie::int4_gemm, {dtype}, because {self.why(type(self), self.config)})"

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Map x [..., K] to [..., N] in its dtype."""
        words, tables, _ = self._get_weight_params(layer)
        inputs, outputs = self.config.partition_weight_shape
        weight = PackedWeight(
            words,
            tables,
            getattr(layer, CONTROL),
            outputs,
            inputs,
            operator_group(inputs, self.config.group_size),
            self.config.zero_points,
            self.scale_dtype,
            gate_up=False,
        )
        return int4_gemm(x, weight, bias)
