# SPDX-License-Identifier: Apache-2.0
"""Repack each expert's 4-bit weight as `w4a16_cpu` packs a layer's.

Shape suffixes: E experts, H hidden size, I inner size, N outputs, P outputs padded, K inputs, B bytes of two inputs
each, G groups.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from aerie.kernels.w4a16_cpu.pack import pack_scales, pack_weight


class PackedExperts(NamedTuple):
    """What the operator reads: gate over up [2 I, H] and down [H, I] of every expert."""

    gate_up_EPB: torch.Tensor
    gate_up_scales_EGP2: torch.Tensor
    down_EPB: torch.Tensor
    down_scales_EGP2: torch.Tensor


def pack_experts(
    experts: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack (unsigned integers [N, K], scales [N, G], zero points [N, G] or None) of each expert, one after another.

    Returns:
        words uint8 [E, P, K/2] and scales bfloat16 [E, G, P, 2].
    """
    words, scales = [], []
    for q_NK, scale_NG, zero_NG in experts:
        words.append(pack_weight(q_NK))
        scales.append(pack_scales(scale_NG, q_NK.shape[1], zero_NG))
    return torch.stack(words), torch.stack(scales)
