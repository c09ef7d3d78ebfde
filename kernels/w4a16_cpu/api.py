# SPDX-License-Identifier: Apache-2.0
"""y = bfloat16(bfloat16(x) W^T) + bias with W[n, k] = (q[n, k] - 8) * scale[n, g] + offset[n, g], g = k // group size.

x [M, K] of any float dtype, q 4 bit, scale and offset bfloat16, y [M, N] in x's dtype, sums in float32.
Bytes read: N * K / 2 of integers + 4 * N * K / group size of scales; FLOPs: 2 * M * N * K.

Two routes compute this same definition. Few rows: torch's `_weight_int4pack_mm_for_cpu`, which reads 4 bits a weight
and treats every row alike, so that a row's result does not depend on how many rows come with it. Many rows: tiles of W
are dequantised to float32 once and multiplied; both round at the same two places, and so differ in a last bit of
bfloat16 here and there. In float32 the torch operator is 10 to 50 times slower than a dense product: never call it so.
"""

import torch

from aerie.kernels.w4a16_cpu.pack import block_rows, float_tile
from aerie.kernels.w4a16_cpu.tuning import TILE_ROWS, dense_from_rows

GROUP_SIZES = (32, 64, 128)
OUTPUT_MULTIPLE = 16


def unsupported(outputs: int, inputs: int, group_size: int) -> str | None:
    """Why a layer of this shape cannot be served, None when it can."""
    if group_size not in GROUP_SIZES:
        return f"group size {group_size} is not one of {GROUP_SIZES}"
    if inputs % group_size:
        return f"{inputs} inputs are not a multiple of the group size {group_size}"
    if outputs % OUTPUT_MULTIPLE:
        return f"{outputs} outputs are not a multiple of {OUTPUT_MULTIPLE}"
    return None


def few_rows(x_MK: torch.Tensor, words_NB: torch.Tensor, scales_GN2: torch.Tensor) -> torch.Tensor:
    """The route that reads 4 bits a weight: bfloat16 x [M, K] to bfloat16 [M, N]."""
    group_size = x_MK.shape[1] // scales_GN2.shape[0]
    y_MN: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_MK, words_NB, group_size, scales_GN2)
    return y_MN


def many_rows(x_MK: torch.Tensor, words_NB: torch.Tensor, scales_GN2: torch.Tensor, block: int) -> torch.Tensor:
    """The route through float32 tiles: bfloat16 x [M, K] to bfloat16 [M, N]; `block` from `block_rows`."""
    outputs = words_NB.shape[0]
    x_MK = x_MK.float()
    y_MN = torch.empty(x_MK.shape[0], outputs, dtype=torch.bfloat16)
    for first in range(0, outputs, TILE_ROWS):
        rows = min(TILE_ROWS, outputs - first)
        y_MN[:, first : first + rows] = x_MK @ float_tile(words_NB, scales_GN2, first, rows, block)
    return y_MN


def _linear(x_MK: torch.Tensor, words_NB: torch.Tensor, scales_GN2: torch.Tensor) -> torch.Tensor:
    rounded_MK = x_MK.to(torch.bfloat16).contiguous()
    dense_from = dense_from_rows()
    block = block_rows(words_NB.shape[0])
    if block is None or dense_from is None or x_MK.shape[0] < dense_from:
        y_MN = few_rows(rounded_MK, words_NB, scales_GN2)
    else:
        y_MN = many_rows(rounded_MK, words_NB, scales_GN2, block)
    return y_MN.to(x_MK.dtype)


# torch.compile must not look inside: it would fix the route for the number of rows it was traced with.
_opaque_linear = torch.library.custom_op("aerie::w4a16_linear_cpu", _linear, mutates_args=())


@_opaque_linear.register_fake
def _(x_MK: torch.Tensor, words_NB: torch.Tensor, scales_GN2: torch.Tensor) -> torch.Tensor:
    return x_MK.new_empty(x_MK.shape[0], words_NB.shape[0])


def w4a16_linear(
    x: torch.Tensor, words_NB: torch.Tensor, scales_GN2: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """The operator of this file's docstring, for x [..., K]; returns [..., N] in x's dtype.

    Args:
        x: activations, float32, bfloat16 or float16.
        words_NB: `pack_weight`'s result, uint8 [N, K/2].
        scales_GN2: `pack_scales`'s result, bfloat16 [G, N, 2].
        bias_N: added after rounding, in x's dtype.
    """
    x_MK = x.reshape(-1, x.shape[-1])
    # A custom operator costs 10 us a call in Python, as much as a small layer: eager code goes straight in.
    linear = _opaque_linear if torch.compiler.is_compiling() else _linear
    y_MN: torch.Tensor = linear(x_MK, words_NB, scales_GN2)
    y = y_MN.view(*x.shape[:-1], words_NB.shape[0])
    return y if bias_N is None else y + bias_N
