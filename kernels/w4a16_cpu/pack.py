# SPDX-License-Identifier: Apache-2.0
"""Repack 4-bit weights into the layout of torch's CPU operator, and back into float32 tiles.

The layout is torch's own and depends on the instruction set torch runs on: it is made at load time, never stored.
Blocks of B output rows follow one another (B = 64 on AVX-512, 32 on AVX2); inside a block, for each k, B/2 bytes hold
the values of the block's rows: the low nibbles rows 0 to B/2-1, the high nibbles rows B/2 to B-1. Outputs are padded to
whole blocks with rows of zeros: the operator takes multiples of 16 only, and would lay a part of a block out otherwise.

Shape suffixes: N outputs, P outputs padded, K inputs, W words of 8 inputs, G groups of S inputs, B rows of a block,
T rows of a tile (whole blocks).
"""

import torch
from torch.nn.functional import pad

from aerie.kernels.w4a16_cpu import operator_group

BLOCK_ROWS = {"AVX2": 32, "AVX512": 64}
PORTABLE_BLOCK_ROWS = 16
"""What the operator demands where torch has no layout of blocks."""
# Rows repacked at a time: bounds the int32 copy of the weight. A multiple of every block size.
PACK_ROWS = 1024
ZERO = 8
"""The integer that stands for zero where no zero point is given."""


def block_rows() -> int | None:
    """Rows of a block in the layout of this process, None when it is not one that `float_tile` can read."""
    return BLOCK_ROWS.get(torch.backends.cpu.get_cpu_capability())


def padded(outputs: int) -> int:
    """Outputs as packed in this process."""
    block = block_rows() or PORTABLE_BLOCK_ROWS
    return -(-outputs // block) * block


def nibbles(words_NW: torch.Tensor) -> torch.Tensor:
    """The unsigned 4-bit integers, uint8 [N, 8 W], of int32 words of eight each, the first in the lowest bits."""
    pairs = words_NW.contiguous().view(torch.uint8)  # x86 stores the lowest byte first
    return torch.stack((pairs & 0xF, pairs >> 4), dim=-1).flatten(start_dim=-2)


def pack_weight(q_NK: torch.Tensor) -> torch.Tensor:
    """Pack unsigned 4-bit integers [N, K] into torch's layout, uint8 [P, K/2]."""
    parts = [
        torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            pad(rows.to(torch.int32), (0, 0, 0, padded(len(rows)) - len(rows)), value=ZERO), 1
        )
        for rows in q_NK.split(PACK_ROWS)
    ]
    return torch.cat(parts)


def pack_words(words_NW: torch.Tensor) -> torch.Tensor:
    """`pack_weight` of `nibbles`, some rows at a time, so that the integers never lie in memory all at once."""
    return torch.cat([pack_weight(nibbles(rows)) for rows in words_NW.split(PACK_ROWS)])


def pack_scales(scale_NG: torch.Tensor, inputs: int, zero_NG: torch.Tensor | None = None) -> torch.Tensor:
    """Scales and offsets as the operator reads them, bfloat16 [G, P, 2]: w = (q - 8) * scale + offset.

    Without zero points the offset is 0; with them it is (8 - z) * scale, rounded to bfloat16. Groups larger than the
    operator's, such as a whole channel, become several with the same scale.
    """
    scale_GN = scale_NG.T.to(torch.bfloat16)
    offset_GN = (
        torch.zeros_like(scale_GN) if zero_NG is None else ((ZERO - zero_NG.T.float()) * scale_GN.float()).bfloat16()
    )
    group_size = inputs // scale_GN.shape[0]
    both_GN2 = torch.stack((scale_GN, offset_GN), dim=-1)
    both_GN2 = both_GN2.repeat_interleave(group_size // operator_group(inputs, group_size), dim=0)
    return pad(both_GN2, (0, 0, 0, padded(both_GN2.shape[1]) - both_GN2.shape[1])).contiguous()


def float_tile(words_PB: torch.Tensor, scales_GP2: torch.Tensor, first: int, rows: int, block: int) -> torch.Tensor:
    """Dequantise output rows [first, first + rows) to a float32 tile [K, T]; both multiples of `block`. Exact."""
    k = words_PB.shape[1] * 2
    groups = scales_GP2.shape[0]
    words = words_PB[first : first + rows].view(rows // block, k, block // 2)
    tile = torch.empty(k, rows // block, 2, block // 2)
    tile[:, :, 0] = (words & 0xF).transpose(0, 1)
    tile[:, :, 1] = (words >> 4).transpose(0, 1)
    scale_G1T, offset_G1T = scales_GP2[:, first : first + rows].float().unsqueeze(1).unbind(-1)
    tile_GST = tile.view(groups, k // groups, rows)
    torch.addcmul(offset_G1T - 8 * scale_G1T, tile_GST, scale_G1T, out=tile_GST)
    return tile_GST.view(k, rows)
