# SPDX-License-Identifier: Apache-2.0
"""y[m] = sum over a of weights[m, a] * down_e (SiLU(gate_e x[m]) * up_e x[m]), with e = ids[m, a], in four launches.

x, y [M, H] bfloat16 or float16; weights [M, A]; gate_e, up_e [I, H] and down_e [H, I] 4 bit as in `int4_gemm`. Sums are
float32; SiLU(gate) * up is rounded to x's dtype, and then only y. A pair is a token and one of the experts it chose,
P = M A of them: pair m A + a.

1. `align` (`expert_blocks.py`) sorts pairs by expert and cuts what each expert has into blocks of `tile_m` rows.
2. `product_kernel` over gate_up, x gathered by token, SiLU(gate) * up in its epilogue: [P, I].
3. `product_kernel` over down: float32 [splits, P, H].
4. `add_up_kernel` multiplies by the weights and adds, a after a.

Bytes read, with U experts chosen by any token and s the bytes of a scale and perhaps a zero point: U 3 H I (1/2 + s /
group) of weights, 2 M H of x, 2 P I; written 2 P I + 4 P H + 2 M H, and 4 P H read again; where K is split into S,
8 S P I of gate and up too, both ways, and S times the 4 P H. FLOPs: 6 P H I.
Floor in time: those bytes over the memory's bandwidth while M is small. At H = 4096, I = 1536 and groups of 128 an
expert is 9.7 MB: 78 MB at M = 1, A = 8, on an H200 at 4.3 TB/s 18 us; of 128 experts 16 tokens with random choices
reach 82, 0.8 GB and 186 us.

A token's result does not depend on what comes with it for M <= 16, bit for bit: tile, split and the order of sums
follow from N, K and A alone (`tuning.py`), the column of a product that a pair gets does not see the others, and sums
over splits and over a have an order of their own. Each element has one program that writes it.

Shape suffixes: in kernels N rows of a tile of the weight, M rows of x in it, C columns of y; else M tokens, H hidden
size, I inner size, P pairs, S splits.
"""

import torch
import triton
import triton.language as tl

from aerie.kernels.expert_blocks import Choices, Plan, align, local_expert, pairs_of_block
from aerie.kernels.int4_gemm.kernel import FIRST_COUNTER, arrive, finish, sums_of_all
from aerie.kernels.int4_gemm.pack import STEP, steps
from aerie.kernels.int4_gemm.tuning import Cut
from aerie.kernels.int4_inner import TILE, WORDS, weight_times_x
from aerie.kernels.int4_moe.pack import PackedExperts
from aerie.kernels.int4_moe.tuning import Cuts
from aerie.kernels.route import FUSION

ADD_UP_SIZE, ADD_UP_WARPS = 1024, 4


@triton.jit(do_not_specialize=["pairs"])
def product_kernel(
    x_ptr: tl.tensor,
    words_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    control_ptr: tl.tensor,
    order_ptr: tl.tensor,
    blocks_ptr: tl.tensor,
    y_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    pairs: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    steps: tl.tensor,
    sharing: tl.constexpr,
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
    """Rows of x times the expert of their block; grid (tiles of N, splits, blocks).

    `outputs`, `inputs` are N, K, the latter in `steps` steps, of which `splits` programs share those of a tile.
    `sharing` pairs, one after another, have a row of x. `words_ptr`, `tables_ptr`: stacks, as `pack.py` has them.
    `control_ptr`, `order_ptr`, `blocks_ptr`: from `align_kernel`.
    `silu_mul`: y is SiLU(gate) * up, [P, N / 2]; `partial_ptr` is float32 [splits, P, tiles of N, tile_n] if there are
    splits, and the last of them to arrive adds up. Else y is float32 [splits, P, N], for `add_up_kernel`.
    `even`: N is a multiple of tile_n, `whole`: K of a step. The rest: see `weight_times_x`.
    """
    tile, split, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    expert = tl.load(blocks_ptr + block).to(tl.int64)
    if expert < 0:
        return
    pairs_M, valid_M = pairs_of_block(order_ptr, blocks_ptr, block, tl.num_programs(2), tile_m)
    rows_N = tile * tile_n + tl.arange(0, tile_n)
    if not even:
        rows_N = tl.where(rows_N < outputs, rows_N, 0)
    # A step is two tiles of words, and scales of two groups share a word of a table.
    words_ptr += expert * steps * (2 * WORDS) * outputs
    tables_ptr += expert * steps * (TILE // group + asymmetric) * outputs
    sums_NM = weight_times_x(
        words_ptr, tables_ptr, control_ptr, x_ptr, rows_N, pairs_M // sharing * inputs, valid_M, outputs, inputs,
        steps * split // splits, steps * (split + 1) // splits, group, asymmetric, scale_dtype, whole, stages, ptx,
    )  # fmt: skip
    if not silu_mul:
        y_ptr += split.to(tl.int64) * pairs * outputs
    elif splits > 1:
        columns = tl.num_programs(0) * tile_n
        at_NM = pairs_M[None, :] * columns + (tile * tile_n + tl.arange(0, tile_n))[:, None]
        tl.store(partial_ptr + split.to(tl.int64) * pairs * columns + at_NM, sums_NM, mask=valid_M[None, :])
        if arrive(control_ptr + FIRST_COUNTER + block * tl.num_programs(0) + tile) != splits - 1:
            return
        sums_NM = sums_of_all(partial_ptr + at_NM, valid_M, pairs * columns, splits)
    finish(sums_NM, None, None, y_ptr, tile * tile_n, pairs_M, valid_M, outputs, silu_mul)


@triton.jit(do_not_specialize=["pairs", "named"])
def add_up_kernel(
    z_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    map_ptr: tl.tensor,
    y_ptr: tl.tensor,
    pairs: tl.tensor,
    named: tl.tensor,
    experts: tl.tensor,
    outputs: tl.tensor,
    chosen: tl.constexpr,
    splits: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Multiply what experts yield by the routing weights, and add it up; grid (M, tiles of H).

    `z_ptr`: float32 [splits, P, H], of which pairs whose expert is not here were never written, and are not read.
    """
    token = tl.program_id(0)
    columns_C = tl.program_id(1) * size + tl.arange(0, size)
    inside_C = columns_C < outputs
    sums_C = tl.full((size,), 0.0, tl.float32)
    for a in tl.static_range(chosen):
        pair = token * chosen + a
        here = local_expert(ids_ptr, map_ptr, pair, pair < pairs, named, experts) >= 0
        weight = tl.load(weights_ptr + pair, mask=here, other=0.0).to(tl.float32)
        last = tl.where(here, outputs, 0)
        of_one_C = tl.full((size,), 0.0, tl.float32)
        for split in tl.static_range(splits):
            at_C = (split * pairs + pair).to(tl.int64) * outputs + columns_C
            of_one_C += tl.load(z_ptr + at_C, mask=columns_C < last, other=0.0)
        sums_C += weight * of_one_C
    tl.store(y_ptr + token.to(tl.int64) * outputs + columns_C, sums_C.to(y_ptr.dtype.element_ty), mask=inside_C)


def product(x: torch.Tensor, experts: PackedExperts, plan: Plan, how: Cut, sharing: int, y: torch.Tensor) -> None:
    """Fill y: SiLU(gate) * up [P, I], or down's float32 [S, P, H]. `sharing` pairs have a row of x."""
    pairs, gpu = len(plan.order_P), x.device.type == "cuda"
    tiles = triton.cdiv(experts.outputs, how.tile_n)
    partial = None
    if how.splits > 1 and experts.gate_up:
        partial = x.new_empty(how.splits, pairs, tiles, how.tile_n, dtype=torch.float32)
    product_kernel[(tiles, how.splits, plan.blocks_3B.shape[1])](
        x, experts.words_ETNW, experts.tables_ETRN, plan.control, plan.order_P, plan.blocks_3B, y, partial,
        pairs, experts.outputs, experts.inputs, steps(experts.inputs),
        sharing=sharing,
        group=experts.group_size,
        asymmetric=experts.asymmetric,
        scale_dtype=tl.bfloat16 if experts.scale_dtype == torch.bfloat16 else tl.float16,
        silu_mul=experts.gate_up,
        splits=how.splits,
        tile_n=how.tile_n,
        tile_m=how.tile_m,
        stages=how.stages,
        even=experts.outputs % how.tile_n == 0,
        whole=experts.inputs % STEP == 0,
        ptx=gpu and torch.version.hip is None,
        num_warps=how.warps,
        num_stages=how.stages,
        enable_fp_fusion=FUSION,
    )  # fmt: skip


def launch(
    x_MH: torch.Tensor,
    weights_MA: torch.Tensor,
    choices: Choices,
    gate_up: PackedExperts,
    down: PackedExperts,
    how: Cuts,
    y_MH: torch.Tensor,
) -> None:
    """Fill y; everything contiguous, and at least one token that chooses at least one expert."""
    (tokens, hidden), chosen = x_MH.shape, weights_MA.shape[1]
    tiles = triton.cdiv(gate_up.outputs, how.gate_up.tile_n)
    plan = align(choices, how.gate_up.tile_m, tiles if how.gate_up.splits > 1 else 0)
    gated_PI = x_MH.new_empty(tokens * chosen, down.inputs)
    product(x_MH, gate_up, plan, how.gate_up, chosen, gated_PI)
    z_SPH = x_MH.new_empty(how.down.splits, tokens * chosen, hidden, dtype=torch.float32)
    product(gated_PI, down, plan, how.down, 1, z_SPH)
    add_up_kernel[(tokens, triton.cdiv(hidden, ADD_UP_SIZE))](
        z_SPH, weights_MA, choices.ids_MA, choices.expert_map, y_MH,
        tokens * chosen, choices.named, choices.experts, hidden,
        chosen=chosen,
        splits=how.down.splits,
        size=ADD_UP_SIZE,
        num_warps=ADD_UP_WARPS,
        enable_fp_fusion=FUSION,
    )  # fmt: skip
