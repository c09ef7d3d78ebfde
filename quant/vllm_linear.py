# SPDX-License-Identifier: Apache-2.0
"""Make vLLM serve INT4 linear layers on CPUs where its own kernel cannot.

vLLM's kernel needs AVX-512 and 16-bit activations, and says yes without checking either; ours is asked first and
steps back where vLLM's works (docs/decisions names the measurement).
"""

import os
from typing import Literal

from aerie.quant.errors import QuantError

CHOICE_VARIABLE = "AERIE_CPU_INT4"
Choice = Literal["auto", "aerie", "stock"]
Dtype = Literal["float32", "bfloat16", "float16"]


def kernel_choice() -> Choice:
    """The value of AERIE_CPU_INT4.

    Raises:
        QuantError: it is none of auto, aerie, stock.
    """
    value = os.environ.get(CHOICE_VARIABLE, "auto")
    for choice in ("auto", "aerie", "stock"):
        if value == choice:
            return choice
    raise QuantError(f"{CHOICE_VARIABLE}={value}: set it to auto (the default), aerie or stock")


def register() -> None:
    """Put our kernel before vLLM's on CPU platforms; does nothing elsewhere, or when called again."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    kernel_choice()
    # The public register_linear_kernel appends, behind the kernel that says yes to everything.
    from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS
    from vllm.platforms import PlatformEnum

    from aerie.quant.vllm_kernel import AerieW4A16LinearKernel

    kernels = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    if AerieW4A16LinearKernel not in kernels:
        kernels.insert(0, AerieW4A16LinearKernel)


def serving_kernel_name(dtype: Dtype | None = None, group_size: int = 64) -> str:
    """The kernel that will serve INT4 layers on this machine, by asking vLLM.

    Args:
        dtype: of the activations; None means float32 on a CPU and bfloat16 elsewhere.
        group_size: weights that share a scale.

    Raises:
        ValueError: no kernel can; the message lists vLLM's reasons.
    """
    import torch
    from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
    from vllm.platforms import current_platform
    from vllm.scalar_type import scalar_types

    current_platform.import_kernels()
    register()
    chosen = dtype or ("float32" if current_platform.is_cpu() else "bfloat16")
    shape = (4096, 4096)
    layer = MPLinearLayerConfig(
        full_weight_shape=shape,
        partition_weight_shape=shape,
        weight_type=scalar_types.uint4b8,
        act_type=getattr(torch, chosen),
        group_size=group_size,
        zero_points=False,
    )
    return choose_mp_linear_kernel(layer).__name__
