# SPDX-License-Identifier: Apache-2.0
"""The gate in Triton. One gate a channel is a matrix product with an epilogue; one gate a head is a dot product a head.

Shape suffixes: T tokens, K inputs, D channels, N heads, E channels of one head; within a kernel, of its block.
"""

import torch
import triton
import triton.language as tl

from aerie.kernels.route import FUSION
from aerie.kernels.tile_product import Tile, tile_for, tile_product

ELEMENTWISE_TILES = (
    Tile(outputs=32, rows=16, inputs=256, warps=4, stages=3),
    Tile(outputs=32, rows=32, inputs=128, warps=4, stages=4),
    Tile(outputs=64, rows=64, inputs=128, warps=4, stages=3),
)
"""Narrow, so that 4096 channels make 128 programs for the 132 multiprocessors of an H200. Not measured yet."""
HEADWISE_ROWS, HEADWISE_INPUTS, HEADWISE_WARPS = 4, 1024, 4
"""Tokens that share one read of a head's weights. Not measured yet."""


@triton.jit
def elementwise_gate_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    attended_ptr: tl.tensor,
    gated_ptr: tl.tensor,
    T: int,
    D: int,
    K: int,
    x_stride: int,
    attended_stride: int,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> None:
    """Program (d, t) writes BLOCK_T tokens of BLOCK_D channels; the gate lives in registers only."""
    d_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    t_T = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    logits_DT = tile_product(weight_ptr, x_ptr, d_D, t_T, D, T, K, x_stride, BLOCK_D, BLOCK_T, BLOCK_K, EVEN_K)
    inside_DT = (d_D < D)[:, None] & (t_T < T)[None, :]
    t_T = t_T.to(tl.int64)
    attended_ptrs_DT = attended_ptr + t_T[None, :] * attended_stride + d_D[:, None]
    attended_DT = tl.load(attended_ptrs_DT, mask=inside_DT, other=0.0).to(tl.float32)
    gated_DT = attended_DT * tl.sigmoid(logits_DT)
    gated_ptrs_DT = gated_ptr + t_T[None, :] * D + d_D[:, None]
    tl.store(gated_ptrs_DT, gated_DT.to(gated_ptr.dtype.element_ty), mask=inside_DT)


@triton.jit
def headwise_gate_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    attended_ptr: tl.tensor,
    gated_ptr: tl.tensor,
    T: int,
    K: int,
    head_dim: int,
    x_stride: int,
    attended_stride: int,
    gated_stride: int,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """Program (head, t) reads the head's one row of the weight and gates the head for BLOCK_T tokens."""
    head = tl.program_id(0)
    t_T = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside_T = t_T < T
    t_T = t_T.to(tl.int64)
    k_K = tl.arange(0, BLOCK_K)
    sum_TK = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    for first in range(0, K, BLOCK_K):
        inside_K = k_K < K - first
        weight_K = tl.load(weight_ptr + head.to(tl.int64) * K + first + k_K, mask=inside_K, other=0.0)
        x_ptrs_TK = x_ptr + t_T[:, None] * x_stride + first + k_K[None, :]
        x_TK = tl.load(x_ptrs_TK, mask=inside_T[:, None] & inside_K[None, :], other=0.0)
        sum_TK += x_TK.to(tl.float32) * weight_K.to(tl.float32)[None, :]
    gate_T = tl.sigmoid(tl.sum(sum_TK, axis=1))
    e_E = tl.arange(0, BLOCK_E)
    inside_TE = inside_T[:, None] & (e_E < head_dim)[None, :]
    channel_E = head * head_dim + e_E
    attended_ptrs_TE = attended_ptr + t_T[:, None] * attended_stride + channel_E[None, :]
    attended_TE = tl.load(attended_ptrs_TE, mask=inside_TE, other=0.0).to(tl.float32)
    gated_TE = (attended_TE * gate_T[:, None]).to(gated_ptr.dtype.element_ty)
    tl.store(gated_ptr + t_T[:, None] * gated_stride + channel_E[None, :], gated_TE, mask=inside_TE)


def launch(x_TK: torch.Tensor, weight_GK: torch.Tensor, attended_TD: torch.Tensor, gated_TD: torch.Tensor) -> None:
    """Fill `gated_TD`; weight and result contiguous, rows of the others without gaps. Any number of tokens but none."""
    (tokens, inputs), (gates, channels) = x_TK.shape, (len(weight_GK), attended_TD.shape[1])
    if gates == channels:
        tile = tile_for(tokens, ELEMENTWISE_TILES)
        elementwise_gate_kernel[(triton.cdiv(channels, tile.outputs), triton.cdiv(tokens, tile.rows))](
            x_TK,
            weight_GK,
            attended_TD,
            gated_TD,
            tokens,
            channels,
            inputs,
            x_TK.stride(0),
            attended_TD.stride(0),
            BLOCK_D=tile.outputs,
            BLOCK_T=tile.rows,
            BLOCK_K=tile.inputs,
            EVEN_K=inputs % tile.inputs == 0,
            num_warps=tile.warps,
            enable_fp_fusion=FUSION,
            num_stages=tile.stages,
        )
        return
    rows = min(HEADWISE_ROWS, triton.next_power_of_2(tokens))
    headwise_gate_kernel[(gates, triton.cdiv(tokens, rows))](
        x_TK,
        weight_GK,
        attended_TD,
        gated_TD,
        tokens,
        inputs,
        channels // gates,
        x_TK.stride(0),
        attended_TD.stride(0),
        gated_TD.stride(0),
        BLOCK_T=rows,
        BLOCK_K=HEADWISE_INPUTS,
        BLOCK_E=triton.next_power_of_2(channels // gates),
        num_warps=HEADWISE_WARPS,
        enable_fp_fusion=FUSION,
    )
