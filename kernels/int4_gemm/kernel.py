# SPDX-License-Identifier: Apache-2.0
"""y = act(x W^T + bias) + residual with W[n, k] = (q[n, k] - z[n, g]) * scale[n, g], g = k // group size.

x [M, K] bfloat16 or float16, q and z 4 bit (z = 8 in a symmetric weight), scale 16 bit, sums in float32, y [M, N] in
x's dtype, rounded once. act is nothing, or SiLU(gate) * up over a weight whose rows alternate between the two; y has
N / 2 columns then. bias [N] and residual, of y's shape, may be absent.

Bytes read: N K / 2 of integers, 2 N K / group of scales, N K / 64 of zero points where there are any, and 2 M K of x,
once from memory and then by each tile of N; written: 2 M N. FLOPs: 2 M N K.
Floor in time: those bytes over the memory's bandwidth while M is small; on an H200 at 4.3 TB/s a symmetric 4096 x 4096
in groups of 128 is 8.65 MB, hence 2.0 us. `int4_inner.py` tells of the other floor, the instructions.

Rows of x do not see each other, and for M <= 16 neither the tile nor the split of K depends on M (`tuning.py`): a row's
result is then the same, bit for bit, in whatever company it comes. Where K is split, each program leaves its sums in a
workspace, and the last to arrive adds them up in their order.

Shape suffixes: N rows of a tile of the weight, M rows of x in a tile, H half of N.
"""

import triton
import triton.language as tl

from aerie.kernels.int4_inner import weight_times_x

FIRST_COUNTER = tl.constexpr(4)
"""Where in `control` the arrivals are counted. Its word 0 is the mask of a word's fields, 0x000F000F."""


@triton.jit
def arrive(counter_ptr: tl.tensor) -> tl.tensor:
    """Count a program as arrived, when all of its sums are on their way; returns how many had before."""
    tl.debug_barrier()
    return tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")


@triton.jit
def sums_of_all(
    partial_NM: tl.tensor, valid_M: tl.tensor, between_splits: tl.tensor, splits: tl.constexpr
) -> tl.tensor:
    """What the programs of a tile left in the workspace, added up in their order: float32 [N, M]."""
    sums_NM = tl.full(partial_NM.shape, 0.0, tl.float32)
    for split in tl.static_range(splits):
        # Past the first-level cache: other multiprocessors wrote it.
        at_NM = partial_NM + split * between_splits
        sums_NM += tl.load(at_NM, mask=valid_M[None, :], other=0.0, cache_modifier=".cg")
    return sums_NM


@triton.jit
def silu_times(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """SiLU(gate) * up, float32."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def finish(
    sums_NM: tl.tensor,
    bias_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    y_ptr: tl.tensor,
    first_row: tl.tensor,
    rows_M: tl.tensor,
    valid_M: tl.tensor,
    outputs: tl.tensor,
    silu_mul: tl.constexpr,
) -> None:
    """Bias, activation and residual in float32; then the one rounding, into y."""
    tile_n: tl.constexpr = sums_NM.shape[0]
    if bias_ptr is not None:
        rows_N = first_row + tl.arange(0, tile_n)
        # The weight's rows alternate between gate and up, the bias is as the layer has it.
        at_N = (rows_N % 2) * (outputs // 2) + rows_N // 2 if silu_mul else rows_N
        sums_NM += tl.load(bias_ptr + at_N, mask=rows_N < outputs, other=0.0).to(tl.float32)[:, None]
    if silu_mul:
        sums_H2M = tl.reshape(sums_NM, (tile_n // 2, 2, sums_NM.shape[1]))
        gate_HM, up_HM = tl.split(tl.permute(sums_H2M, (0, 2, 1)))
        sums_NM = silu_times(gate_HM, up_HM)
        columns = outputs // 2
        columns_N = first_row // 2 + tl.arange(0, tile_n // 2)
    else:
        columns = outputs
        columns_N = first_row + tl.arange(0, tile_n)
    at_NM = rows_M[None, :].to(tl.int64) * columns + columns_N[:, None]
    inside_NM = valid_M[None, :] & (columns_N < columns)[:, None]
    if residual_ptr is not None:
        sums_NM += tl.load(residual_ptr + at_NM, mask=inside_NM, other=0.0).to(tl.float32)
    tl.store(y_ptr + at_NM, sums_NM.to(y_ptr.dtype.element_ty), mask=inside_NM)


@triton.jit(do_not_specialize=["rows"])
def int4_gemm(
    x_ptr: tl.tensor,
    words_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    control_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    y_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    steps: tl.tensor,
    group: tl.constexpr,
    asymmetric: tl.constexpr,
    scale_dtype: tl.constexpr,
    silu_mul: tl.constexpr,
    splits: tl.constexpr,
    tile_n: tl.constexpr,
    tile_m: tl.constexpr,
    stages: tl.constexpr,
    even: tl.constexpr,
    whole: tl.constexpr,
    ptx: tl.constexpr,
) -> None:
    """The operator of this file's docstring; grid (tiles of N, splits, tiles of M).

    `rows`, `outputs`, `inputs` are M, N, K, in `steps` steps. x and y are contiguous; bias and residual may be None.
    `splits` programs share the steps of a tile; more than one only where there is a single tile of M.
    `partial_ptr`: float32 [splits, tiles of N, tile_m, tile_n], None without a split.
    `even`: N is a multiple of tile_n, `whole`: K of a step. The rest: see `weight_times_x`.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    first_m = tl.program_id(2) * tile_m
    rows_M = first_m + tl.arange(0, tile_m)
    valid_M = rows_M < rows
    x_ptr += first_m.to(tl.int64) * inputs
    rows_N = tile * tile_n + tl.arange(0, tile_n)
    if not even:
        rows_N = tl.where(rows_N < outputs, rows_N, 0)
    sums_NM = weight_times_x(
        words_ptr, tables_ptr, control_ptr, x_ptr, rows_N, (rows_M - first_m) * inputs, valid_M, outputs, inputs,
        steps * split // splits, steps * (split + 1) // splits, group, asymmetric, scale_dtype, whole, stages, ptx,
    )  # fmt: skip
    if splits > 1:
        at_NM = tl.arange(0, tile_m)[None, :] * tile_n + tl.arange(0, tile_n)[:, None]
        between_splits = tl.num_programs(0) * tile_n * tile_m
        partial_ptr += tile * tile_n * tile_m
        tl.store(partial_ptr + split * between_splits + at_NM, sums_NM, mask=valid_M[None, :])
        counter_ptr = control_ptr + FIRST_COUNTER + tile
        if arrive(counter_ptr) != splits - 1:
            return
        sums_NM = sums_of_all(partial_ptr + at_NM, valid_M, between_splits, splits)
        tl.store(counter_ptr, 0)
    finish(sums_NM, bias_ptr, residual_ptr, y_ptr, tile * tile_n, rows_M, valid_M, outputs, silu_mul)
