# SPDX-License-Identifier: Apache-2.0
"""An INT4 linear layer as vLLM's loaders leave it, whichever checkpoint format it came from.

Read against vLLM 0.32.0 and 0.33.0: GPTQ and AWQ, whose words vLLM has put into GPTQ's order, have words [K/8, N] and
scales [G, N]; compressed-tensors [N, K/8] and [N, G]. Zero points are packed along the outputs: [G, N/8] in GPTQ,
[N/8, G] in the others. The parameters' `input_dim` and `output_dim` tell them apart.

Shape suffixes: N outputs, A words of eight inputs, G groups.
"""

from typing import NamedTuple

import torch
from vllm.model_executor.kernels.linear import MPLinearLayerConfig

from aerie.kernels.int4_gemm import PER_CHANNEL
from aerie.kernels.int4_gemm.pack import nibbles
from aerie.quant.formats.nibbles import VALUES_PER_WORD


def cut_group(inputs: int, group_size: int) -> str | None:
    """Why a rank cannot have so many of a layer's inputs when groups stay whole; None when it can."""
    if group_size == PER_CHANNEL or inputs % group_size == 0:
        return None
    return f"{inputs} inputs of a rank are no multiple of the group size {group_size}"


def cut_word(share: int, what: str) -> str | None:
    """Why a rank cannot have so many of what words hold eight of; None when it can. vLLM rounds to words unasked."""
    fits = share % VALUES_PER_WORD == 0
    return None if fits else f"{share} {what} of a rank are no multiple of a word's {VALUES_PER_WORD}"


def cut_words(c: MPLinearLayerConfig) -> str | None:
    """Why a rank's share of a linear layer ends within words of integers or of zero points; None when it does not."""
    (inputs, outputs), (all_inputs, all_outputs) = c.partition_weight_shape, c.full_weight_shape
    if inputs != all_inputs and (reason := cut_word(inputs, "inputs")) is not None:
        return reason
    return cut_word(outputs, "outputs") if c.zero_points and outputs != all_outputs else None


class LoadedWeight(NamedTuple):
    """Views of the parameters; they hold until these are replaced."""

    words_NA: torch.Tensor
    """int32, eight inputs a word, the first in the lowest bits."""
    scale_NG: torch.Tensor
    zero_NG: torch.Tensor | None
    """uint8, in [0, 15]; None is 8 everywhere."""


def loaded_weight(
    words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, outputs: int, zero_offset: int = 0
) -> LoadedWeight:
    """Turn a layer's parameters the same way round.

    Args:
        words: the packed integers.
        scales: of groups or of whole outputs.
        zeros: packed zero points; None where the layer has none, or ones that mean nothing.
        outputs: N, which words of zero points may exceed.
        zero_offset: what zero points lack as stored: 1 in GPTQ's first format.
    """
    words_NA = words.data if getattr(words, "input_dim", 1) == 1 else words.data.T
    scale_NG = scales.data if getattr(scales, "output_dim", 0) == 0 else scales.data.T
    if zeros is None:
        return LoadedWeight(words_NA, scale_NG, None)
    # Packed along the outputs: unpacking the transpose unpacks those.
    packed_GB = zeros.data.T if getattr(zeros, "output_dim", 0) == 0 else zeros.data
    return LoadedWeight(words_NA, scale_NG, ((nibbles(packed_GB) + zero_offset) & 0xF).T[:outputs])
