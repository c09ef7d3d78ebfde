# SPDX-License-Identifier: Apache-2.0
"""A tile of W x^T for few rows x: the inner loop of the kernels that read a large 16-bit weight once.

The weight is the first operand, so that its many rows, and not the few rows of x, fill the tensor cores' tall side
(64 rows a warp group on Hopper). Sums are float32, in one order whatever the number of rows.

Shape suffixes: N rows of the weight, T rows of x, K columns of both; within a kernel, of a tile.
"""

from dataclasses import dataclass

import triton
import triton.language as tl


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work. Powers of two."""

    outputs: int
    rows: int
    inputs: int
    warps: int
    stages: int


def tile_for(rows: int, tiles: tuple[Tile, ...]) -> Tile:
    """The first tile that holds all rows of x, so that the weight is read once; else the last."""
    return next((tile for tile in tiles if rows <= tile.rows), tiles[-1])


@triton.jit
def tile_product(
    weight_ptr: tl.tensor,
    x_ptr: tl.tensor,
    n_N: tl.tensor,
    t_T: tl.tensor,
    N: int,
    T: int,
    K: int,
    x_stride: int,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """Float32 [N, T]: rows n_N of the weight times rows t_T of x.

    Rows beyond the last are the last once more, not zero: a load that is never masked is a wide one. The caller
    throws them away.
    """
    k_K = tl.arange(0, BLOCK_K)
    weight_ptrs_NK = weight_ptr + tl.minimum(n_N, N - 1).to(tl.int64)[:, None] * K + k_K[None, :]
    x_ptrs_KT = x_ptr + tl.minimum(t_T, T - 1).to(tl.int64)[None, :] * x_stride + k_K[:, None]
    sum_NT = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for first in range(0, K, BLOCK_K):
        if EVEN_K:
            weight_NK = tl.load(weight_ptrs_NK, eviction_policy="evict_first")
            x_KT = tl.load(x_ptrs_KT, eviction_policy="evict_last")
        else:
            inside_K = k_K < K - first
            weight_NK = tl.load(weight_ptrs_NK, mask=inside_K[None, :], other=0.0, eviction_policy="evict_first")
            x_KT = tl.load(x_ptrs_KT, mask=inside_K[:, None], other=0.0, eviction_policy="evict_last")
        sum_NT = tl.dot(weight_NK, x_KT, sum_NT, input_precision="ieee")
        weight_ptrs_NK += BLOCK_K
        x_ptrs_KT += BLOCK_K
    return sum_NT
