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


def few_rows(x_MK: torch.Tensor, words_PB: torch.Tensor, scales_GP2: torch.Tensor) -> torch.Tensor:
    """The route that reads 4 bits a weight: bfloat16 x [M, K] to bfloat16 [M, P]."""
    group_size = x_MK.shape[1] // scales_GP2.shape[0]
    y_MP: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_MK, words_PB, group_size, scales_GP2)
    return y_MP


def many_rows(x_MK: torch.Tensor, words_PB: torch.Tensor, scales_GP2: torch.Tensor, block: int) -> torch.Tensor:
    """The route through float32 tiles: bfloat16 x [M, K] to bfloat16 [M, P]; `block` from `block_rows`."""
    outputs = words_PB.shape[0]
    x_MK = x_MK.float()
    y_MP = torch.empty(x_MK.shape[0], outputs, dtype=torch.bfloat16)
    for first in range(0, outputs, TILE_ROWS):
        rows = min(TILE_ROWS, outputs - first)
        y_MP[:, first : first + rows] = x_MK @ float_tile(words_PB, scales_GP2, first, rows, block)
    return y_MP


def product(x_MK: torch.Tensor, words_PB: torch.Tensor, scales_GP2: torch.Tensor) -> torch.Tensor:
    """bfloat16 x [M, K], contiguous, times W^T, padded outputs included: bfloat16 [M, P], by the faster route."""
    dense_from, block = dense_from_rows(), block_rows()
    if block is None or dense_from is None or x_MK.shape[0] < dense_from:
        return few_rows(x_MK, words_PB, scales_GP2)
    return many_rows(x_MK, words_PB, scales_GP2, block)


def _linear(x_MK: torch.Tensor, words_PB: torch.Tensor, scales_GP2: torch.Tensor, outputs: int) -> torch.Tensor:
    y_MP = product(x_MK.to(torch.bfloat16).contiguous(), words_PB, scales_GP2)
    return y_MP[:, :outputs].to(x_MK.dtype).contiguous()


# torch.compile must not look inside: it would fix the route for the number of rows it was traced with.
_opaque_linear = torch.library.custom_op("aerie::w4a16_linear_cpu", _linear, mutates_args=())


@_opaque_linear.register_fake
def _(x_MK: torch.Tensor, words_PB: torch.Tensor, scales_GP2: torch.Tensor, outputs: int) -> torch.Tensor:
    return x_MK.new_empty(x_MK.shape[0], outputs)


def w4a16_linear(
    x: torch.Tensor,
    words_PB: torch.Tensor,
    scales_GP2: torch.Tensor,
    outputs: int,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operator of this file's docstring, for x [..., K]; returns [..., N] in x's dtype.

    Args:
        x: activations, float32, bfloat16 or float16.
        words_PB: `pack_weight`'s result, uint8 [P, K/2].
        scales_GP2: `pack_scales`'s result, bfloat16 [G, P, 2].
        outputs: N; packing padded them to P.
        bias_N: added after rounding, in x's dtype.
    """
    x_MK = x.reshape(-1, x.shape[-1])
    # A custom operator costs 10 us a call in Python, as much as a small layer: eager code goes straight in.
    linear = _opaque_linear if torch.compiler.is_compiling() else _linear
    y_MN: torch.Tensor = linear(x_MK, words_PB, scales_GP2, outputs)
    y = y_MN.view(*x.shape[:-1], outputs)
    return y if bias_N is None else y + bias_N
