# SPDX-License-Identifier: Apache-2.0
"""Make vLLM serve INT4 linear layers and experts on CPUs where its own kernels cannot.

vLLM's linear kernel needs AVX-512 and 16-bit activations, and says yes without checking either; ours is asked first and
steps back where vLLM's works (docs/decisions names the measurement). Its experts need AMX.
"""

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

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
    """Put our kernel before vLLM's and our configurations in place of them; on x86 CPUs only, once or more often."""
    from vllm.platforms import CpuArchEnum, current_platform

    if not current_platform.is_cpu() or current_platform.get_cpu_architecture() != CpuArchEnum.X86:
        return
    kernel_choice()
    # The public register_linear_kernel appends, behind the kernel that says yes to everything.
    from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS
    from vllm.platforms import PlatformEnum

    from aerie.quant import vllm_config
    from aerie.quant.vllm_kernel import AerieW4A16LinearKernel

    kernels = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    if AerieW4A16LinearKernel not in kernels:
        kernels.insert(0, AerieW4A16LinearKernel)
    vllm_config.register()


def stock_experts_serve(dtype: "torch.dtype") -> bool:
    """Whether vLLM's INT4 experts may run on this CPU: they need AMX and, though they do not ask, bfloat16."""
    import torch

    return torch.cpu._is_amx_tile_supported() and dtype == torch.bfloat16


def serving_kernel(
    dtype: Dtype | None = None, group_size: int = 64, shape: tuple[int, int] = (4096, 4096), symmetric: bool = True
) -> tuple[str, str]:
    """The kernel that will serve an INT4 linear layer on this machine, by asking vLLM, and why.

    Args:
        dtype: of the activations; None means float32 on a CPU and bfloat16 elsewhere.
        group_size: weights that share a scale; -1 for all inputs of an output.
        shape: outputs and inputs.
        symmetric: without zero points.

    Raises:
        ValueError: no kernel can; the message lists vLLM's reasons.
    """
    import torch
    from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
    from vllm.platforms import current_platform
    from vllm.scalar_type import scalar_types

    current_platform.import_kernels()
    register()
    outputs, inputs = shape
    layer = MPLinearLayerConfig(
        full_weight_shape=(inputs, outputs),
        partition_weight_shape=(inputs, outputs),
        weight_type=scalar_types.uint4b8 if symmetric else scalar_types.uint4,
        act_type=getattr(torch, dtype or default_dtype()),
        group_size=group_size,
        zero_points=not symmetric,
    )
    name = choose_mp_linear_kernel(layer).__name__
    if not current_platform.is_cpu():
        return name, "vLLM's first choice for this GPU"
    from aerie.quant.vllm_kernel import stock_serves, why_not_stock

    if name == "CPUWNA16LinearKernel" and not stock_serves(layer):
        raise ValueError(f"AERIE_CPU_INT4=stock, and vLLM's {name} does not run {layer.act_type} on this CPU")
    return name, why_not_stock(layer) if name.startswith("Aerie") else "vLLM's own runs here with this type"


def serving_experts(dtype: Dtype | None = None) -> tuple[str, str]:
    """What will serve INT4 experts on this machine, and why.

    Raises:
        ValueError: nothing can.
    """
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return "one of vLLM's", "it chooses while it loads, and the log names it"
    choice, runs = kernel_choice(), stock_experts_serve(getattr(torch, dtype or default_dtype()))
    if choice == "aerie" or (choice == "auto" and not runs):
        return "AerieInt4Experts", "AERIE_CPU_INT4=aerie" if choice == "aerie" else "vLLM's own need AMX and bfloat16"
    if not runs:
        raise ValueError("AERIE_CPU_INT4=stock, and vLLM's experts need AMX and bfloat16")
    return "CPUExpertsInt4", "vLLM's own run here with this type; ours serve what they refuse"


def default_dtype() -> Dtype:
    """Of the activations, where nobody asked for another."""
    from vllm.platforms import current_platform

    return "float32" if current_platform.is_cpu() else "bfloat16"
