# SPDX-License-Identifier: Apache-2.0
"""The draft's greedy choice in Triton: a product with the best of each tile as its epilogue, then the best of those.

Shape suffixes: T tokens, V draft vocabulary, H hidden size, P tiles of the vocabulary; within a kernel, of its block.
"""

import torch
import triton
import triton.language as tl

from aerie.kernels.route import FUSION
from aerie.kernels.tile_product import Tile, tile_for, tile_product

TILES = (
    Tile(outputs=128, rows=16, inputs=64, warps=4, stages=4),
    Tile(outputs=128, rows=32, inputs=64, warps=4, stages=4),
    Tile(outputs=128, rows=64, inputs=64, warps=4, stages=4),
)
"""250 programs for a vocabulary of 32000: one wave, two a multiprocessor of an H200. Not measured yet."""


@triton.jit
def tile_best_kernel(
    hidden_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    best_ptr: tl.tensor,
    best_id_ptr: tl.tensor,
    T: int,
    V: int,
    H: int,
    P: int,
    hidden_stride: int,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
) -> None:
    """Program (p, t) writes the largest logit of tile p, and its draft id, for BLOCK_T tokens."""
    p = tl.program_id(0)
    v_V = p * BLOCK_V + tl.arange(0, BLOCK_V)
    t_T = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    logits_VT = tile_product(
        weight_ptr, hidden_ptr, v_V, t_T, V, T, H, hidden_stride, BLOCK_V, BLOCK_T, BLOCK_H, EVEN_H
    )
    # Rows beyond the vocabulary repeat its last one: masked, so that nothing rests on tensor cores rounding all rows
    # alike. A NaN wins against nothing, so that it cannot choose one of those rows.
    logits_VT = tl.where((v_V < V)[:, None] & (logits_VT == logits_VT), logits_VT, float("-inf"))
    best_T, row_T = tl.max(logits_VT, axis=0, return_indices=True, return_indices_tie_break_left=True)
    to_T = t_T.to(tl.int64) * P + p
    tl.store(best_ptr + to_T, best_T, mask=t_T < T)
    tl.store(best_id_ptr + to_T, p * BLOCK_V + row_T, mask=t_T < T)


@triton.jit
def choose_kernel(
    best_ptr: tl.tensor,
    best_id_ptr: tl.tensor,
    d2t_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    next_ids_ptr: tl.tensor,
    P: int,
    MAP: tl.constexpr,
    WRITE_NEXT: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """Program t writes token t: tiles are in ascending order, so that of equal logits the lowest id's wins again."""
    t = tl.program_id(0).to(tl.int64)
    p_P = tl.arange(0, BLOCK_P)
    best_P = tl.load(best_ptr + t * P + p_P, mask=p_P < P, other=float("-inf"))
    _, p = tl.max(best_P, axis=0, return_indices=True, return_indices_tie_break_left=True)
    token = tl.load(best_id_ptr + t * P + p).to(tl.int64)
    if MAP:
        token += tl.load(d2t_ptr + token).to(tl.int64)
    tl.store(tokens_ptr + t, token)
    if WRITE_NEXT:
        tl.store(next_ids_ptr + t, token.to(next_ids_ptr.dtype.element_ty))


def launch(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    d2t_V: torch.Tensor | None,
    tokens_T: torch.Tensor,
    next_ids_T: torch.Tensor | None,
) -> None:
    """Fill `tokens_T` and, where given, `next_ids_T`; the weight contiguous. Any number of tokens but none."""
    (tokens, hidden), vocabulary = hidden_TH.shape, len(weight_VH)
    tile = tile_for(tokens, TILES)
    tiles = triton.cdiv(vocabulary, tile.outputs)
    best_TP = hidden_TH.new_empty(tokens, tiles, dtype=torch.float32)
    best_id_TP = hidden_TH.new_empty(tokens, tiles, dtype=torch.int32)
    tile_best_kernel[(tiles, triton.cdiv(tokens, tile.rows))](
        hidden_TH,
        weight_VH,
        best_TP,
        best_id_TP,
        tokens,
        vocabulary,
        hidden,
        tiles,
        hidden_TH.stride(0),
        BLOCK_V=tile.outputs,
        BLOCK_T=tile.rows,
        BLOCK_H=tile.inputs,
        EVEN_H=hidden % tile.inputs == 0,
        num_warps=tile.warps,
        enable_fp_fusion=FUSION,
        num_stages=tile.stages,
    )
    choose_kernel[(tokens,)](
        best_TP,
        best_id_TP,
        d2t_V if d2t_V is not None else best_id_TP,
        tokens_T,
        next_ids_T if next_ids_T is not None else tokens_T,
        tiles,
        MAP=d2t_V is not None,
        WRITE_NEXT=next_ids_T is not None,
        BLOCK_P=triton.next_power_of_2(tiles),
        num_warps=4,
        enable_fp_fusion=FUSION,
    )
