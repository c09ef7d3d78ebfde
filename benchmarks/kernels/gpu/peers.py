# SPDX-License-Identifier: Apache-2.0
"""vLLM's compiled INT4 kernels, each on the same weight in its own layout. None need be there.

Read against vLLM 0.32.0, whose sources are those of 0.33.0 here (`layers/quantization/utils/marlin_utils.py`,
`kernels/linear/mixed_precision/`, `layers/fused_moe/experts/marlin_moe.py`). Older versions ask for more, such as the
order of inputs of a GPTQ layer that has none: each function gets by name what it asks for (`fitted`).

Shape suffixes: N outputs, K inputs, G groups, A words of eight inputs, E experts.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from aerie.benchmarks.kernels.gpu.shapes import GROUP_SIZE
from aerie.benchmarks.kernels.gpu.ways import Way, Weight
from aerie.quant.formats.nibbles import pack

MARLIN_UTILS = "vllm.model_executor.layers.quantization.utils.marlin_utils"
MARLIN_MOE = (
    "vllm.model_executor.layers.fused_moe.experts.marlin_moe",
    "vllm.model_executor.layers.fused_moe.fused_marlin_moe",
)
BLOCKS_PER_MULTIPROCESSOR = 4
"""Of Marlin, at most: it wants a lock for each."""


class PeerError(Exception):
    """A kernel of someone else's that is not there or cannot be called; the message says why."""


def fitted(function: Callable[..., Any], offered: Mapping[str, object]) -> Any:  # noqa: ANN401 -- whatever it returns
    """Call a function with those of the offered arguments that it has; raises PeerError when it wants others."""
    parameters = inspect.signature(function).parameters
    unknown = [name for name, one in parameters.items() if one.default is one.empty and name not in offered]
    if unknown:
        raise PeerError(f"{function.__name__} asks for {', '.join(unknown)}: another vLLM than this was read against")
    return function(**{name: value for name, value in offered.items() if name in parameters})


def operators(*names: str, library: str = "_C") -> Any:  # noqa: ANN401 -- a module of vLLM's
    """`vllm._custom_ops`, when the compiled operators are there; raises PeerError."""
    try:
        ops = importlib.import_module("vllm._custom_ops")
    except ImportError as error:
        raise PeerError(f"vLLM cannot be imported: {error}") from error
    missing = [name for name in names if not hasattr(getattr(torch.ops, library), name)]
    if missing:
        raise PeerError(f"this vLLM has no operator {library}::{', '.join(missing)}")
    return ops


def first_there(*modules: str) -> Any:  # noqa: ANN401 -- a module of vLLM's
    """The first of these modules that can be found; raises PeerError."""
    for name in modules:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise PeerError(f"this vLLM has none of {', '.join(modules)}")


def uint4b8() -> Any:  # noqa: ANN401 -- vLLM's ScalarType
    """The name, in vLLM, of integers of four bits with a zero at 8."""
    return importlib.import_module("vllm.scalar_type").scalar_types.uint4b8


def no_order(device: torch.device) -> dict[str, object]:
    """What versions before 0.32 ask for of a layer whose inputs are in order."""
    empty = torch.empty(0, dtype=torch.int, device=device)
    names = ("perm", "g_idx", "g_idx_sort_indices", "g_idx1", "g_idx2", "sort_indices1", "sort_indices2")
    return {**dict.fromkeys(names, empty), "is_k_full": True}


def marlin_weight(ops: Any, q_NK: Tensor, scale_NG: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 -- see above
    """A weight and its scales as Marlin reads them."""
    utils = importlib.import_module(MARLIN_UTILS)
    sizes = {"size_k": q_NK.shape[1], "size_n": q_NK.shape[0], "num_bits": 4, "group_size": GROUP_SIZE}
    offered = {**no_order(q_NK.device), **sizes, "is_a_8bit": False}
    words = fitted(ops.gptq_marlin_repack, {**offered, "b_q_weight": pack(q_NK).T.contiguous()})
    scales = fitted(utils.marlin_permute_scales, {**offered, "s": scale_NG.T.contiguous()})
    return words, scales


def locks(device: torch.device) -> Tensor:
    """Marlin's, which are 0 before and after each call."""
    count = torch.cuda.get_device_properties(device).multi_processor_count * BLOCKS_PER_MULTIPROCESSOR
    return torch.zeros(count, dtype=torch.int, device=device)


def marlin(weight: Weight) -> Way:
    """Marlin, called as vLLM's linear layers call it; raises PeerError."""
    ops = operators("gptq_marlin_repack")
    apply = importlib.import_module(MARLIN_UTILS).apply_gptq_marlin_linear
    device = weight.q_NK.device
    words, scales = marlin_weight(ops, weight.q_NK, weight.scale_NG)
    empty = torch.empty(0, dtype=torch.int, device=device)
    fixed = {
        **no_order(device),
        "weight_zp": empty,
        "wtype": uint4b8(),
        "input_size_per_partition": weight.q_NK.shape[1],
        "output_size_per_partition": weight.q_NK.shape[0],
    }

    def call(x_MK: Tensor, words: Tensor, scales: Tensor, workspace: Tensor) -> Tensor:
        given = {"input": x_MK, "weight": words, "weight_scale": scales, "workspace": workspace}
        y_MN: Tensor = fitted(apply, {**fixed, **given})
        return y_MN

    return Way((words, scales, locks(device)), call)


def machete(weight: Weight) -> Way:
    """Machete, called as vLLM's linear layers call it; for Hopper alone; raises PeerError."""
    ops = operators("machete_prepack_B", "machete_mm")
    kind, dtype = uint4b8(), weight.dtype
    # [K/8, N], with K running fastest: the words as they are, turned.
    words = {"b_q_weight": pack(weight.q_NK).T, "b_type": kind, "a_type": dtype, "group_scales_type": dtype}
    prepacked = fitted(ops.machete_prepack_B, words)

    def call(x_MK: Tensor, words: Tensor, scale_GN: Tensor) -> Tensor:
        given = {"a": x_MK, "b_q": words, "b_group_scales": scale_GN}
        y_MN: Tensor = fitted(ops.machete_mm, {**given, "b_type": kind, "b_group_size": GROUP_SIZE})
        return y_MN

    return Way((prepacked, weight.scale_NG.T.contiguous()), call)
