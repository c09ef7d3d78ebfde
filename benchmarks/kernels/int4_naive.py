# SPDX-License-Identifier: Apache-2.0
"""An INT4 product as one writes it at first: unpack, convert, subtract, scale, multiply; int4_gemm is held against it.

y = x W^T with W[n, k] = (q[n, k] - 8) * scale[n, g], words of eight inputs in their order as compressed-tensors stores
them: int32 [N, K / 8], scales [N, K / 128]. Correct, and slow: each weight is shifted, converted and scaled by itself,
and goes through shared memory to become an operand. Nobody calls it.

Shape suffixes: M rows of x, N of the weight, K inputs of a step, all of a tile.
"""

import triton
import triton.language as tl

GROUP = tl.constexpr(128)


@triton.jit
def int4_naive(
    x_ptr: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    tile_n: tl.constexpr,
    tile_m: tl.constexpr,
) -> None:
    """The product of this file's docstring; grid (tiles of N, tiles of M). N and K are multiples of a tile."""
    rows_M = tl.program_id(1) * tile_m + tl.arange(0, tile_m)
    rows_N = tl.program_id(0) * tile_n + tl.arange(0, tile_n)
    inputs_K = tl.arange(0, GROUP)
    valid_M = rows_M < rows
    sums_MN = tl.full((tile_m, tile_n), 0.0, tl.float32)
    for first in range(0, inputs, GROUP):
        at_K = first + inputs_K
        x_MK = tl.load(x_ptr + rows_M[:, None] * inputs + at_K[None, :], mask=valid_M[:, None], other=0.0)
        words_KN = tl.load(words_ptr + rows_N[None, :] * (inputs // 8) + (at_K // 8)[:, None])
        scale_N = tl.load(scales_ptr + rows_N * (inputs // GROUP) + first // GROUP)
        q_KN = (words_KN >> (at_K % 8 * 4)[:, None]) & 0xF
        w_KN = (q_KN.to(x_MK.dtype) - 8.0) * scale_N[None, :]
        sums_MN += tl.dot(x_MK, w_KN)
    tl.store(
        y_ptr + rows_M[:, None] * outputs + rows_N[None, :], sums_MN.to(y_ptr.dtype.element_ty), mask=valid_M[:, None]
    )
