# SPDX-License-Identifier: Apache-2.0
"""Who computes the parts of a draft step: our operators (`aerie.kernels`), or vLLM's layers and torch.

Light: the server asks it before an engine exists. Whatever needs torch imports it when called.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    import torch
    from torch import nn

CHOICE_VARIABLE: Final = "AERIE_DRAFT_KERNELS"
Choice = Literal["auto", "aerie", "torch"]
Part = Literal["prologue", "gate", "head"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)

AHEAD: Final[Mapping[Part, frozenset[str]]] = {
    "prologue": frozenset(),
    "gate": frozenset(),
    "head": frozenset(),
}
"""GPUs, as vLLM names them, on which a result under benchmarks/results shows our operator ahead of what it replaces.

Empty until one is committed: `auto` then keeps vLLM's own everywhere. On CPUs it always does: there ours is the same
arithmetic, by torch.
"""


class DraftKernelsError(ValueError):
    """The variable that chooses the kernels has a value that means nothing."""


def kernel_choice() -> Choice:
    """The value of AERIE_DRAFT_KERNELS.

    Raises:
        DraftKernelsError: it is none of auto, aerie, torch.
    """
    value = os.environ.get(CHOICE_VARIABLE, "auto")
    for choice in get_args(Choice):
        if value == choice:
            return choice  # type: ignore[no-any-return]  # get_args knows no types
    raise DraftKernelsError(f"{CHOICE_VARIABLE}={value}: set it to auto (the default), aerie or torch")


def ours(part: Part) -> tuple[bool, str]:
    """Whether our operator is to compute a part on this machine, and why.

    Raises:
        DraftKernelsError: the choice means nothing.
    """
    choice = kernel_choice()
    if choice != "auto":
        return choice == "aerie", f"{CHOICE_VARIABLE}={choice}"
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return False, "Triton has no CPU backend" if current_platform.is_cpu() else "it is written for CUDA GPUs"
    name = current_platform.get_device_name()
    ahead = name in AHEAD[part]
    return ahead, f"{'measured ahead' if ahead else 'no measurement shows ours ahead'} on {name}"


def plain_weight(layer: "nn.Module") -> "torch.Tensor | None":
    """The weight of a linear layer, embedding or lm_head of vLLM's that holds it whole and in its own dtype, else None.

    Quantised layers have none; of a vocabulary that is sharded each rank sees a part.
    """
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

    if not isinstance(layer.quant_method, UnquantizedLinearMethod | UnquantizedEmbeddingMethod):
        return None
    if isinstance(layer, VocabParallelEmbedding) and layer.tp_size > 1:
        return None
    weight: Any = layer.weight
    return weight  # type: ignore[no-any-return]  # a module's attributes have no types
