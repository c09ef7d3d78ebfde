# SPDX-License-Identifier: Apache-2.0
"""The inner loop of Triton kernels with INT4 weights: rows of a packed weight times rows of activations.

Where the memory is fast, instruction issue is the second limit: an H200 at full bandwidth has four instructions for
each weight that arrives. So the loop is counted (`aerie.kernels.aot`, docs/kernels.md), and looks as it does:

- The weight is the left operand of the matrix product, straight from registers, and x the right one: 16 rows of x cost
  a warp one instruction for 256 weights, where with x on the left a tile of 64 rows would be empty for the most part.
- A word holds four pairs of inputs that lie side by side (`int4_gemm/pack.py`), so that a shift, a LOP3 and an addition
  make a register of that operand: the pair becomes the last bits of two numbers 128 + q (bfloat16; 1024 + q in
  float16), and 128 + z is subtracted, exactly.
- Scales multiply the sums of a group, not its weights.
- Scales lie in words that hold two: 4 bytes are the least that can be copied asynchronously.

Shape suffixes: N rows of a tile of the weight, M rows of x in a tile, W words of a row, G inputs of a group, P the two
of a pair, J fields; 1 a dimension to be broadcast.
"""

import triton
import triton.language as tl

STEP = tl.constexpr(256)
"""Inputs of a step of the loop: two tiles of words, 256 / group scales, one word of zero points for each row."""
TILE = tl.constexpr(128)
"""Inputs of a tile of words, 16 of them for each row."""
WORDS = tl.constexpr(16)
# Pairs of 16-bit numbers whose last four bits are free: 128 and 1024, the same negative, and these with 8 for z.
BIAS_BFLOAT16, BIAS_FLOAT16 = tl.constexpr(0x43004300), tl.constexpr(0x64006400)
MINUS_BFLOAT16, MINUS_FLOAT16 = tl.constexpr(0xC300C300 - 2**32), tl.constexpr(0xE400E400 - 2**32)
MINUS_8_BFLOAT16, MINUS_8_FLOAT16 = tl.constexpr(0xC308C308 - 2**32), tl.constexpr(0xE408E408 - 2**32)


@triton.jit
def biased(words_NW: tl.tensor, mask_11: tl.tensor, j: tl.constexpr, magic: tl.constexpr) -> tl.tensor:
    """Field j of each word, a pair of 4-bit integers, in the last bits of the pair of 16-bit numbers `magic`.

    The mask, 0x000F000F, comes from memory, so that ptxas does not know it. A LOP3 takes one constant at most, and a
    second one that is known is written to a register anew for most of them.
    """
    return ((words_NW >> (4 * j)) & mask_11) | magic


@triton.jit
def minus_zero(
    zeros_N: tl.tensor, mask_11: tl.tensor, j: tl.constexpr, rows: tl.constexpr, dtype: tl.constexpr
) -> tl.tensor:
    """What makes q - z of a biased q when added, in both halves of a word [N, 1]. Field j holds z, else it is 8."""
    if zeros_N is None:
        words_N1 = tl.full((rows, 1), MINUS_8_BFLOAT16 if dtype == tl.bfloat16 else MINUS_8_FLOAT16, tl.int32)
    else:
        words_N1 = biased(zeros_N[:, None], mask_11, j, MINUS_BFLOAT16 if dtype == tl.bfloat16 else MINUS_FLOAT16)
    return words_N1


@triton.jit
def half(words: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """The last 16 bits of words as numbers."""
    return words.to(tl.int16).to(tl.bfloat16 if dtype == tl.bfloat16 else tl.float16, bitcast=True)


@triton.jit
def field(
    words_NW: tl.tensor,
    minus_zero_N1: tl.tensor,
    mask_11: tl.tensor,
    j: tl.constexpr,
    dtype: tl.constexpr,
    ptx: tl.constexpr,
) -> tl.tensor:
    """Field j of each word less its zero point, exact: [N, W, P] of `dtype`.

    The addition is PTX, for LLVM makes one instruction of a pair of bfloat16 only where a constant is added, and on
    sm_80 never. The other branch is the interpreter's: there any dtype but bfloat16 will do.
    """
    pairs_NW = biased(words_NW, mask_11, j, BIAS_BFLOAT16 if dtype == tl.bfloat16 else BIAS_FLOAT16)
    if ptx:
        # 0x3f80 is 1 in bfloat16, of which sm_80 has no addition.
        pairs_NW = tl.inline_asm_elementwise(
            "{ .reg .b32 one; mov.b32 one, 0x3f803f80; fma.rn.bf16x2 $0, $1, one, $2; }"
            if dtype == tl.bfloat16
            else "add.f16x2 $0, $1, $2;",
            "=r,r,r",
            [pairs_NW, minus_zero_N1],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        low_NW = half(pairs_NW, dtype)
        high_NW = half(pairs_NW >> 16, dtype)
    else:
        low_NW = half(pairs_NW, dtype) + half(minus_zero_N1, dtype)
        high_NW = half(pairs_NW >> 16, dtype) + half(minus_zero_N1 >> 16, dtype)
    return tl.join(low_NW.to(dtype), high_NW.to(dtype))


@triton.jit
def group_weight(
    words_NW: tl.tensor,
    minus_zero_N1: tl.tensor,
    mask_11: tl.tensor,
    j: tl.constexpr,
    group: tl.constexpr,
    dtype: tl.constexpr,
    ptx: tl.constexpr,
) -> tl.tensor:
    """The group that starts with field j of a tile's words, all four fields or two: q - z [N, G]."""
    rows: tl.constexpr = words_NW.shape[0]
    f0_NWP = field(words_NW, minus_zero_N1, mask_11, j, dtype, ptx)
    f1_NWP = field(words_NW, minus_zero_N1, mask_11, j + 1, dtype, ptx)
    if group == 64:
        f_NJWP = tl.permute(tl.join(f0_NWP, f1_NWP), (0, 3, 1, 2))
    else:
        f2_NWP = field(words_NW, minus_zero_N1, mask_11, j + 2, dtype, ptx)
        f3_NWP = field(words_NW, minus_zero_N1, mask_11, j + 3, dtype, ptx)
        f_NWPJJ = tl.join(tl.join(f0_NWP, f2_NWP), tl.join(f1_NWP, f3_NWP))
        f_NJWP = tl.permute(f_NWPJJ, (0, 3, 4, 1, 2))
    return tl.reshape(f_NJWP, (rows, group))


@triton.jit
def group_sums(
    words_NW: tl.tensor,
    zeros_N: tl.tensor,
    mask_11: tl.tensor,
    x_ptr: tl.tensor,
    at_M: tl.tensor,
    valid_M: tl.tensor,
    left: tl.tensor,
    first: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
    ptx: tl.constexpr,
) -> tl.tensor:
    """The step's group that starts with input `first`, times the same inputs of x, before its scale: float32 [N, M].

    `left` inputs of the step are there.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    inputs_G = first + tl.arange(0, group)
    valid_GM = valid_M[None, :]
    if not whole:
        valid_GM = valid_GM & (inputs_G < left)[:, None]
    at_GM = at_M[None, :] + inputs_G[:, None]
    x_GM = tl.load(x_ptr + at_GM, mask=valid_GM, other=0.0, eviction_policy="evict_last")
    minus_zero_N1 = minus_zero(zeros_N, mask_11, first // group, words_NW.shape[0], dtype)
    return tl.dot(group_weight(words_NW, minus_zero_N1, mask_11, first // 32 % 4, group, dtype, ptx), x_GM)


@triton.jit
def scale_of(scales_N: tl.tensor, high: tl.constexpr, scale_dtype: tl.constexpr) -> tl.tensor:
    """One of the two 16-bit scales in each word: float32 [N, 1]."""
    if scale_dtype == tl.bfloat16:
        bits_N = scales_N & -65536 if high else scales_N << 16
        scale_N = bits_N.to(tl.float32, bitcast=True)
    else:
        scale_N = half(scales_N >> 16 if high else scales_N, tl.float16).to(tl.float32)
    return scale_N[:, None]


@triton.jit
def weight_times_x(
    words_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    x_ptr: tl.tensor,
    rows_N: tl.tensor,
    at_M: tl.tensor,
    valid_M: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    group: tl.constexpr,
    asymmetric: tl.constexpr,
    scale_dtype: tl.constexpr,
    whole: tl.constexpr,
    stages: tl.constexpr,
    ptx: tl.constexpr,
) -> tl.tensor:
    """Rows of the weight times rows of x over the steps [first, last) of K: float32 [N, M].

    The weight: `words_ptr` and `tables_ptr` as `int4_gemm/pack.py` lays them out, `outputs` rows of `inputs` (`whole`:
    a multiple of STEP) in groups of 64 or 128, of which the rows rows_N are meant. `mask_ptr`: where 0x000F000F is.
    x: row m starts `at_M` elements after `x_ptr`, and is read where `valid_M`.
    `stages`: steps in flight, and the one that is multiplied. `ptx`: for NVIDIA's assembler; False: the interpreter.
    """
    mask_11 = tl.load(mask_ptr + tl.arange(0, 1)[:, None] + tl.arange(0, 1)[None, :])
    at_NW = rows_N[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    sums_NM = tl.full((rows_N.shape[0], at_M.shape[0]), 0.0, tl.float32)
    tile_words = outputs * WORDS
    table_words = outputs * (TILE // group + asymmetric)
    words_ptr += first * 2 * tile_words
    tables_ptr += first * table_words
    x_ptr += first * STEP
    # A loop with a number of stages of its own prefetches all its loads, others only what goes into a product.
    for step in tl.range(first, last, num_stages=stages):
        near_NW = tl.load(words_ptr + at_NW, eviction_policy="evict_first")
        far_NW = tl.load(words_ptr + tile_words + at_NW, eviction_policy="evict_first")
        scales_N = tl.load(tables_ptr + rows_N)
        zeros_N = tl.load(tables_ptr + (TILE // group) * outputs + rows_N) if asymmetric else None
        left = inputs - step * STEP
        p_NM = group_sums(near_NW, zeros_N, mask_11, x_ptr, at_M, valid_M, left, 0, group, whole, ptx)
        sums_NM += p_NM * scale_of(scales_N, False, scale_dtype)
        if group == 64:
            p_NM = group_sums(near_NW, zeros_N, mask_11, x_ptr, at_M, valid_M, left, 64, group, whole, ptx)
            sums_NM += p_NM * scale_of(scales_N, True, scale_dtype)
            scales_N = tl.load(tables_ptr + outputs + rows_N)
        p_NM = group_sums(far_NW, zeros_N, mask_11, x_ptr, at_M, valid_M, left, 128, group, whole, ptx)
        sums_NM += p_NM * scale_of(scales_N, group == 128, scale_dtype)
        if group == 64:
            p_NM = group_sums(far_NW, zeros_N, mask_11, x_ptr, at_M, valid_M, left, 192, group, whole, ptx)
            sums_NM += p_NM * scale_of(scales_N, True, scale_dtype)
        words_ptr += 2 * tile_words
        tables_ptr += table_words
        x_ptr += STEP
    return sums_NM
