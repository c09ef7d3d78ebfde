# SPDX-License-Identifier: Apache-2.0
"""The INT4 mixture of experts for CUDA GPUs behind vLLM's interface: `kernels/int4_moe`.

Read against vLLM 0.32.0 and 0.33.0; imported by `vllm_config`.

Shape suffixes as in `vllm_experts.py`: E experts, N outputs, K inputs, G groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from vllm import envs
from vllm.model_executor.layers.fused_moe import FusedMoEConfig, RoutedExperts, SharedExperts
from vllm.platforms import current_platform

from aerie.kernels.int4_gemm.api import DTYPES
from aerie.kernels.int4_gemm.pack import pack
from aerie.kernels.int4_gemm.tuning import measured_ahead
from aerie.kernels.int4_moe import unsupported
from aerie.kernels.int4_moe.api import int4_moe
from aerie.kernels.int4_moe.pack import PackedExperts, stack
from aerie.kernels.int4_moe.tuning import TABLES
from aerie.quant.kernel_choice import CHOICE_VARIABLE, kernel_choice
from aerie.quant.vllm_experts import Expert, Format, Int4Experts, unsupported_kind
from aerie.quant.vllm_gemm import AerieInt4GemmLinearKernel
from aerie.quant.vllm_layout import cut_group, cut_word


@dataclass(frozen=True)
class Sizes:
    """Of a layer's experts as one rank holds them."""

    experts: int
    hidden: int
    inner: int
    group_size: int
    """PER_CHANNEL for one scale an output."""
    dtype: torch.dtype
    """Of the activations."""


def sizes(layer: RoutedExperts, group_size: int) -> Sizes:
    """Of a layer that vLLM is making."""
    config = layer.moe_config
    inner = config.intermediate_size_per_partition
    return Sizes(config.num_local_experts, config.hidden_dim, inner, group_size, config.in_dtype)


def unsupported_layer(layer: RoutedExperts) -> str | None:
    """Why experts of a layer's kind cannot be served, whatever their sizes; None when they can."""
    if layer.moe_config.moe_parallel_config.use_all2all_kernels:
        return "tokens travel between ranks, and vLLM's own kernels see to that"
    return unsupported_kind(layer)


def unsupported_sizes(s: Sizes) -> str | None:
    """Why the operator cannot serve experts of these sizes, None when it can."""
    capability = current_platform.get_device_capability()
    if capability is not None and capability.to_int() < AerieInt4GemmLinearKernel.get_min_capability():
        return f"it needs a GPU of capability 8.0, not {capability.as_version_str()}"
    if s.dtype not in DTYPES:
        return f"it takes {' and '.join(map(str, DTYPES))}, not {s.dtype}"
    if (reason := unsupported(s.hidden, s.inner, s.group_size)) is not None:
        return reason
    for inputs in (s.hidden, s.inner):
        if (reason := cut_group(inputs, s.group_size) or cut_word(inputs, "inputs")) is not None:
            return reason
    return "past 16 tokens a token's result depends on how many there are" if envs.VLLM_BATCH_INVARIANT else None


def ours_serves(s: Sizes, layer: RoutedExperts | None = None) -> tuple[bool, str]:
    """Whether our method and not vLLM's is to serve experts, as AERIE_INT4_KERNEL has it, and why.

    Without a layer they are taken to be of a kind that it knows.
    """
    if (choice := kernel_choice()) == "vllm":
        return False, f"{CHOICE_VARIABLE}=vllm"
    reason = unsupported_sizes(s) or (None if layer is None else unsupported_layer(layer))
    if reason is not None:
        return False, f"int4_moe: {reason}"
    if choice == "aerie":
        return True, f"{CHOICE_VARIABLE}=aerie"
    gpu = current_platform.get_device_name()
    result = measured_ahead(TABLES, gpu, (2 * s.inner, s.hidden, s.group_size, s.experts))
    if result is not None:
        return True, f"{result} shows it ahead on {gpu}"
    told = f"no committed measurement shows it ahead on {gpu}; {CHOICE_VARIABLE}=aerie takes it all the same"
    return False, f"int4_moe: {told}"


class AerieInt4MoeExperts(Int4Experts):
    """The experts through `aerie::int4_moe`, for groups of multiples of 64 or whole channels."""

    def __init__(self, moe: FusedMoEConfig, form: Format, group_size: int, why: str) -> None:
        super().__init__(moe, form)
        self.group_size, self.why = group_size, why
        self.rest: dict[str, PackedExperts] = {}
        """Of either part all but its tensors, which are parameters of the layer."""

    def pack(self, part: str, experts: Iterator[Expert]) -> tuple[torch.Tensor, torch.Tensor]:
        """Words [E, T, N, W] and tables [E, T / 2, R, N] of `kernels/int4_moe/pack.py`."""
        gate_up = part == "w13"
        packed = stack(pack(q_NK, scale_NG, zero_NG, self.group_size, gate_up) for q_NK, scale_NG, zero_NG in experts)
        nothing = packed.words_ETNW.new_empty(0)
        self.rest[part] = packed._replace(words_ETNW=nothing, tables_ETRN=nothing)
        return packed.words_ETNW, packed.tables_ETRN

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
        gate_up, down = (self._whole(layer, part) for part in ("w13", "w2"))
        return int4_moe(x, topk_weights, topk_ids, gate_up, down, layer.expert_map)

    def _whole(self, layer: RoutedExperts, part: str) -> PackedExperts:
        words_ETNW, tables_ETRN = self.packed(layer, part)
        return self.rest[part]._replace(words_ETNW=words_ETNW, tables_ETRN=tables_ETRN)

    def description(self) -> str:
        """What runs, for the log."""
        dtype = str(self.moe.in_dtype).removeprefix("torch.")
        return f"{type(self).__name__} (aerie::int4_moe, {dtype}, because {self.why})"
