# SPDX-License-Identifier: Apache-2.0
"""Which kernel serves INT4 linear layers and experts in vLLM: ours put before vLLM's, and what will serve, and why.

On x86 CPUs vLLM's linear kernel needs AVX-512 and 16-bit activations, and says yes without checking either; its experts
need AMX. Ours are asked first and step back where vLLM's work. On CUDA GPUs ours is asked first too, and steps back
where no measurement shows it ahead (docs/decisions).
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from aerie.quant.vllm_gemm import AerieInt4GemmLinearKernel
    from aerie.quant.vllm_kernel import AerieW4A16LinearKernel

from aerie.quant.kernel_choice import CHOICE_VARIABLE, kernel_choice

Dtype = Literal["float32", "bfloat16", "float16"]


def own_kernel() -> "type[AerieInt4GemmLinearKernel | AerieW4A16LinearKernel] | None":
    """Our linear kernel for this machine; None where there is none."""
    from aerie.quant.vllm_gemm import AerieInt4GemmLinearKernel
    from aerie.quant.vllm_kernel import AerieW4A16LinearKernel

    if AerieInt4GemmLinearKernel.is_for_this_platform():
        return AerieInt4GemmLinearKernel
    return AerieW4A16LinearKernel if AerieW4A16LinearKernel.is_for_this_platform() else None


def register() -> None:
    """Put our kernel before vLLM's and our configurations in place of them; once or more often."""
    ours = own_kernel()
    if ours is None:
        return
    kernel_choice()
    # The public register_linear_kernel appends, behind kernels that say yes.
    from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS
    from vllm.platforms import current_platform

    from aerie.quant import vllm_auto_round, vllm_config

    kernels = _POSSIBLE_KERNELS[current_platform._enum]
    if ours not in kernels:
        kernels.insert(0, ours)
    vllm_config.register()
    vllm_auto_round.register()


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
    chosen, ours = choose_mp_linear_kernel(layer), own_kernel()
    return chosen.__name__, "vLLM's first choice here" if ours is None else ours.why(chosen, layer)


def serving_experts(
    dtype: Dtype | None = None, group_size: int = 64, shape: tuple[int, int, int] = (128, 1536, 2048)
) -> tuple[str, str]:
    """What will serve INT4 experts on this machine, and why.

    Args:
        dtype: of the activations; None means float32 on a CPU and bfloat16 elsewhere.
        group_size: weights that share a scale; -1 for all inputs of an output.
        shape: how many experts, and the outputs and inputs of gate over up.

    Raises:
        ValueError: nothing can.
    """
    import torch

    ours = own_kernel()
    if ours is None:
        return "one of vLLM's", "it chooses while it loads, and the log names it"
    if ours.__name__ == "AerieInt4GemmLinearKernel":
        from aerie.quant.vllm_moe import Sizes, ours_serves

        experts, gate_up, hidden = shape
        act_type = getattr(torch, dtype or default_dtype())
        by_ours, why = ours_serves(Sizes(experts, hidden, gate_up // 2, group_size, act_type))
        return "AerieInt4MoeExperts" if by_ours else "one of vLLM's, which the log names", why
    choice, runs = kernel_choice(), stock_experts_serve(getattr(torch, dtype or default_dtype()))
    if choice == "aerie" or (choice == "auto" and not runs):
        why = f"{CHOICE_VARIABLE}=aerie" if choice == "aerie" else "vLLM's own need AMX and bfloat16"
        return "AerieInt4Experts", why
    if not runs:
        raise ValueError(f"{CHOICE_VARIABLE}=vllm, and vLLM's experts need AMX and bfloat16")
    return "CPUExpertsInt4", "vLLM's own run here with this type; ours serve what they refuse"


def default_dtype() -> Dtype:
    """Of the activations, where nobody asked for another."""
    from vllm.platforms import current_platform

    return "float32" if current_platform.is_cpu() else "bfloat16"
