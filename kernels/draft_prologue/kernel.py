# SPDX-License-Identifier: Apache-2.0
"""The prologue in Triton: one program a half of a token's row, which stays in registers from load to store.

Shape suffixes: T tokens, H hidden size, W rows of the embedding table.
"""

import torch
import triton
import triton.language as tl

from aerie.kernels.route import FUSION

ELEMENTS_A_THREAD = 16
"""Two loads of 16 bytes in 16 bit. Not measured yet."""
MOST_WARPS = 16


@triton.jit
def rms_normed(row_H: tl.tensor, weight_H: tl.tensor, H: int, eps: float) -> tl.tensor:
    """RMSNorm of a float32 row, rounded where vLLM's is: to the weight's type, before the weight is multiplied in."""
    scale = tl.rsqrt(tl.sum(row_H * row_H, axis=0) / H + eps)
    normed_H = (row_H * scale).to(weight_H.dtype)
    return (normed_H.to(tl.float32) * weight_H.to(tl.float32)).to(weight_H.dtype)


@triton.jit
def draft_prologue_kernel(
    ids_ptr: tl.tensor,
    table_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    embed_weight_ptr: tl.tensor,
    hidden_weight_ptr: tl.tensor,
    x_ptr: tl.tensor,
    normed_ptr: tl.tensor,
    W: int,
    H: int,
    table_stride: int,
    hidden_stride: int,
    eps: float,
    GATHER: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """Program (t, 0) writes x[t, :H], program (t, 1) writes x[t, H:] and, to be kept, the same once more."""
    t = tl.program_id(0).to(tl.int64)
    h_H = tl.arange(0, BLOCK_H)
    inside_H = h_H < H
    if tl.program_id(1) == 0:
        row = t
        if GATHER:
            row = tl.load(ids_ptr + t).to(tl.int64)
        # No check can raise here: an id outside the table reads zeros, and never another tensor's memory.
        columns = tl.where((row >= 0) & (row < W), H, 0)
        embed_H = tl.load(table_ptr + row * table_stride + h_H, mask=h_H < columns, other=0.0).to(tl.float32)
        weight_H = tl.load(embed_weight_ptr + h_H, mask=inside_H, other=0.0)
        tl.store(x_ptr + t * 2 * H + h_H, rms_normed(embed_H, weight_H, H, eps), mask=inside_H)
    else:
        hidden_H = tl.load(hidden_ptr + t * hidden_stride + h_H, mask=inside_H, other=0.0).to(tl.float32)
        weight_H = tl.load(hidden_weight_ptr + h_H, mask=inside_H, other=0.0)
        normed_H = rms_normed(hidden_H, weight_H, H, eps)
        tl.store(x_ptr + t * 2 * H + H + h_H, normed_H, mask=inside_H)
        if KEEP:
            tl.store(normed_ptr + t * H + h_H, normed_H, mask=inside_H)


def warps_for(block: int) -> int:
    """Warps of a program whose row is `block` elements."""
    return max(1, min(MOST_WARPS, block // (32 * ELEMENTS_A_THREAD)))


def launch(
    ids_T: torch.Tensor | None,
    table_WH: torch.Tensor,
    hidden_TH: torch.Tensor,
    embed_weight_H: torch.Tensor,
    hidden_weight_H: torch.Tensor,
    x_T2H: torch.Tensor,
    normed_TH: torch.Tensor | None,
    eps: float,
) -> None:
    """Fill `x_T2H` and, where given, `normed_TH`; both contiguous. Rows of the inputs must be without gaps."""
    tokens, hidden = hidden_TH.shape
    block = triton.next_power_of_2(hidden)
    draft_prologue_kernel[(tokens, 2)](
        ids_T if ids_T is not None else hidden_TH,
        table_WH,
        hidden_TH,
        embed_weight_H,
        hidden_weight_H,
        x_T2H,
        normed_TH if normed_TH is not None else x_T2H,
        len(table_WH),
        hidden,
        table_WH.stride(0),
        hidden_TH.stride(0),
        eps,
        GATHER=ids_T is not None,
        KEEP=normed_TH is not None,
        BLOCK_H=block,
        num_warps=warps_for(block),
        enable_fp_fusion=FUSION,
    )
