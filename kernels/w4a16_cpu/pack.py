# SPDX-License-Identifier: Apache-2.0
"""Repack 4-bit weights into the layout of torch's CPU operator, and back into float32 tiles.

The layout is torch's own and depends on the instruction set torch runs on: it is made at load time, never stored.
Blocks of B output rows follow one another (B = 64 on AVX-512, 32 on AVX2); inside a block, for each k, B/2 bytes hold
the values of the block's rows: the low nibbles rows 0 to B/2-1, the high nibbles rows B/2 to B-1.

Shape suffixes: N outputs, K inputs, G groups of S inputs, B rows of a block, T rows of a tile (whole blocks).
"""

import torch

BLOCK_ROWS = {"AVX2": 32, "AVX512": 64}
# Rows repacked at a time: bounds the int32 copy of the weight. A multiple of every block size.
PACK_ROWS = 1024


def pack_weight(q_NK: torch.Tensor) -> torch.Tensor:
    """Pack unsigned 4-bit integers [N, K] into torch's layout, uint8 [N, K/2]; N a multiple of 16."""
    parts = [
        torch.ops.aten._convert_weight_to_int4pack_for_cpu(rows.to(torch.int32).contiguous(), 1)
        for rows in q_NK.split(PACK_ROWS)
    ]
    return torch.cat(parts)


def pack_scales(scale_NG: torch.Tensor, zero_NG: torch.Tensor | None = None) -> torch.Tensor:
    """Scales and offsets as the operator reads them, bfloat16 [G, N, 2]: w = (q - 8) * scale + offset.

    Without zero points the offset is 0; with them it is (8 - z) * scale, rounded to bfloat16.
    """
    scale_GN = scale_NG.T.to(torch.bfloat16)
    offset_GN = (
        torch.zeros_like(scale_GN) if zero_NG is None else ((8 - zero_NG.T.float()) * scale_GN.float()).bfloat16()
    )
    return torch.stack((scale_GN, offset_GN), dim=-1).contiguous()


def block_rows(outputs: int) -> int | None:
    """Rows of a block in the layout of this process, None when it is not one that `float_tile` can read."""
    rows = BLOCK_ROWS.get(torch.backends.cpu.get_cpu_capability())
    return rows if rows is not None and outputs % rows == 0 else None


def float_tile(words_NB: torch.Tensor, scales_GN2: torch.Tensor, first: int, rows: int, block: int) -> torch.Tensor:
    """Dequantise output rows [first, first + rows) to a float32 tile [K, T]; both multiples of `block`. Exact."""
    k = words_NB.shape[1] * 2
    groups = scales_GN2.shape[0]
    words = words_NB[first : first + rows].view(rows // block, k, block // 2)
    tile = torch.empty(k, rows // block, 2, block // 2)
    tile[:, :, 0] = (words & 0xF).transpose(0, 1)
    tile[:, :, 1] = (words >> 4).transpose(0, 1)
    scale_G1T, offset_G1T = scales_GN2[:, first : first + rows].float().unsqueeze(1).unbind(-1)
    tile_GST = tile.view(groups, k // groups, rows)
    torch.addcmul(offset_G1T - 8 * scale_G1T, tile_GST, scale_G1T, out=tile_GST)
    return tile_GST.view(k, rows)
