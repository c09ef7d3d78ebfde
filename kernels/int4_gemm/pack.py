# SPDX-License-Identifier: Apache-2.0
"""Repack 4-bit weights into the layout of the Triton kernels, when they are loaded; and back.

Words: int32 [T, N, 16], tiles of 128 inputs one after another. In word p of a row of a tile the bits from 4j + 16r hold
input 32j + 2p + r of the tile (j = 0 to 3, r = 0 and 1): two inputs that lie side by side become the halves of a
register, as a matrix product wants them, once field j of a word is shifted to the last bits of both.

Tables: int32 [T / 2, R, N], steps of 256 inputs one after another, rows of the weight side by side. A row of a step's
table holds the scales of two groups, the first in the lower half: there is one row for groups of 128, and two for
groups of 64. With zero points there is one more: its field j, in both halves, is the zero point of the step's group j.

K is filled up to whole steps with weights and scales of zero. Nothing of this depends on M or on the kernel's tiles.

Shape suffixes: N outputs, K inputs, G groups, T tiles, W words of a row of a tile, R rows of a table; A and B words
along a side whose values are packed by eight.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from aerie.kernels.int4_gemm import PER_CHANNEL, UnsupportedError, operator_group

STEP, TILE, FIELDS, VALUES_PER_WORD = 256, 128, 4, 8
FIELD_MASK = 0x000F000F
FIRST_COUNTER = 4
"""Where in `control` the counters start, behind the mask; as kernel.py has it."""
LEAST_TILE_N = 64
"""Outputs of the kernel's smallest tile: there is a counter for each."""
SCALE_DTYPES = (torch.bfloat16, torch.float16)


class PackedWeight(NamedTuple):
    """What the operator reads of a weight."""

    words_TNW: torch.Tensor
    tables_TRN: torch.Tensor
    control: torch.Tensor
    """int32: the mask of a word's fields, which the kernel is to find in memory, and counters of arrivals. These are 0
    before and after each call; so a weight must not be multiplied on two streams at a time."""
    outputs: int
    inputs: int
    group_size: int
    """64 or 128."""
    asymmetric: bool
    scale_dtype: torch.dtype
    """bfloat16 or float16."""
    gate_up: bool
    """Rows alternate between gate and up, and the operator yields SiLU(gate) * up."""


def pack(
    q_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    zero_NG: torch.Tensor | None = None,
    group_size: int | None = None,
    gate_up: bool = False,
) -> PackedWeight:
    """Pack unsigned 4-bit integers with a scale, and perhaps a zero point, for every group; on their device.

    Args:
        q_NK: in [0, 15], any integer type.
        scale_NG: bfloat16 or float16, kept as they are; others become bfloat16.
        zero_NG: in [0, 15]; None is 8 everywhere.
        group_size: inputs that share a scale, PER_CHANNEL for all of them; None is K / G. The last group of a row may
            be a part of one.
        gate_up: the rows are those of gate, then those of up, and the operator is to yield SiLU(gate) * up.

    Raises:
        UnsupportedError: the kernel does not take such groups, or shapes do not fit together.
    """
    outputs, inputs = q_NK.shape
    size = inputs // scale_NG.shape[1] if group_size is None else group_size
    operator = operator_group(inputs, size)
    groups = 1 if size == PER_CHANNEL else -(-inputs // size)
    for name, tensor in (("scales", scale_NG), ("zero points", zero_NG)):
        if tensor is not None and tensor.shape != (outputs, groups):
            raise UnsupportedError(
                f"{name} are {tuple(tensor.shape)}, but {outputs} outputs have {groups} groups of {size}"
            )
    if gate_up and outputs % 2:
        raise UnsupportedError(f"gate and up are halves of a weight, but this one has {outputs} outputs")
    scale_NG = scale_NG if scale_NG.dtype in SCALE_DTYPES else scale_NG.to(torch.bfloat16)
    # Larger groups become several of the operator's, with the same scale.
    first_inputs = torch.arange(0, inputs, operator, device=q_NK.device)
    group_of = torch.zeros_like(first_inputs) if size == PER_CHANNEL else first_inputs // size
    rows = interleave(outputs) if gate_up else torch.arange(outputs)
    rows = rows.to(q_NK.device)
    zero_NG = None if zero_NG is None else zero_NG[rows][:, group_of]
    return PackedWeight(
        pack_words(q_NK[rows] if gate_up else q_NK),
        pack_tables(scale_NG[rows][:, group_of], zero_NG, inputs, operator),
        control(outputs, q_NK.device),
        outputs,
        inputs,
        operator,
        zero_NG is not None,
        scale_NG.dtype,
        gate_up,
    )


def interleave(outputs: int) -> torch.Tensor:
    """Which row of gate over up each row of the packed weight is."""
    return torch.arange(outputs).view(2, -1).T.flatten()


def steps(inputs: int) -> int:
    """Steps of the kernel's loop over so many inputs."""
    return -(-inputs // STEP)


def control(outputs: int, device: torch.device) -> torch.Tensor:
    """The mask, and as many counters as a weight may need."""
    words = torch.zeros(FIRST_COUNTER + -(-outputs // LEAST_TILE_N), dtype=torch.int32, device=device)
    words[0] = FIELD_MASK
    return words


def pack_words(q_NK: torch.Tensor) -> torch.Tensor:
    """Words [T, N, 16]. One nibble after the other, so that no copy of the weight in 32 bits is made."""
    outputs, inputs = q_NK.shape
    fields = pad(q_NK, (0, steps(inputs) * STEP - inputs)).view(outputs, -1, FIELDS, TILE // VALUES_PER_WORD, 2)
    words_NTW = torch.zeros_like(fields[:, :, 0, :, 0], dtype=torch.int32)
    for j in range(FIELDS):
        for r in range(2):
            words_NTW |= fields[:, :, j, :, r].to(torch.int32) << (4 * j + 16 * r)
    return words_NTW.transpose(0, 1).contiguous()


def pack_tables(scale_NG: torch.Tensor, zero_NG: torch.Tensor | None, inputs: int, group_size: int) -> torch.Tensor:
    """Tables [T / 2, R, N] of the operator's groups."""
    outputs, groups = scale_NG.shape
    in_step = STEP // group_size
    missing = (0, steps(inputs) * in_step - groups)
    bits_NG = pad(scale_NG.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF, missing)
    low, high = bits_NG.view(outputs, -1, in_step // 2, 2).unbind(-1)
    tables_NTR = low | high << 16
    if zero_NG is not None:
        zeros = pad(zero_NG.to(torch.int32), missing).view(outputs, -1, in_step)
        fields = sum((zeros[..., j : j + 1] << 4 * j for j in range(in_step)), torch.zeros_like(zeros[..., :1]))
        tables_NTR = torch.cat((tables_NTR, fields | fields << 16), dim=-1)
    return tables_NTR.permute(1, 2, 0).contiguous()


def unpack(weight: PackedWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Integers uint8 [N, K], scales [N, G] and zero points uint8 [N, G] or None, in the operator's groups."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=weight.words_TNW.device)
    order = shifts.view(2, FIELDS).T.flatten()  # bit 4j + 16r, r running faster
    nibbles_TNWJ2 = (weight.words_TNW[..., None] >> order & 0xF).to(torch.uint8).unflatten(-1, (FIELDS, 2))
    q_NK = nibbles_TNWJ2.permute(1, 0, 3, 2, 4).flatten(start_dim=1)[:, : weight.inputs]
    pairs = STEP // weight.group_size // 2
    groups = -(-weight.inputs // weight.group_size)
    tables_NTR = weight.tables_TRN.permute(2, 0, 1)
    halves = torch.stack((tables_NTR[..., :pairs], tables_NTR[..., :pairs] >> 16), dim=-1)
    scale_NG = halves.to(torch.int16).view(weight.scale_dtype).flatten(start_dim=1)[:, :groups]
    zero_NG = None
    if weight.asymmetric:
        zeros = tables_NTR[..., pairs:] >> shifts[: 2 * pairs] & 0xF
        zero_NG = zeros.to(torch.uint8).flatten(start_dim=1)[:, :groups]
    if not weight.gate_up:
        return q_NK, scale_NG, zero_NG
    back = interleave(weight.outputs).argsort().to(q_NK.device)
    return q_NK[back], scale_NG[back], None if zero_NG is None else zero_NG[back]


def from_compressed_tensors(
    words_NA: torch.Tensor,
    scale_NG: torch.Tensor,
    zeros_BG: torch.Tensor | None = None,
    group_size: int | None = None,
    gate_up: bool = False,
) -> PackedWeight:
    """Repack `weight_packed` [N, K/8], `weight_scale` and `weight_zero_point` [N/8, G] of a pack-quantized layer."""
    zero_NG = None if zeros_BG is None else nibbles(zeros_BG.T).T[: len(words_NA)]
    return pack(nibbles(words_NA), scale_NG, zero_NG, group_size, gate_up)


def from_gptq(
    words_AN: torch.Tensor,
    scale_GN: torch.Tensor,
    zeros_GB: torch.Tensor | None = None,
    group_size: int | None = None,
    gate_up: bool = False,
    zero_offset: int = 1,
) -> PackedWeight:
    """Repack `qweight` [K/8, N], `scales` and `qzeros` [G, N/8] of a GPTQ layer whose inputs are in order.

    `zero_offset` is what zero points lack as stored: 1 in version 1, 0 in version 2. Without `qzeros`: symmetric, which
    in GPTQ says the configuration, for the tensor is there all the same.
    """
    zero_NG = None if zeros_GB is None else ((nibbles(zeros_GB) + zero_offset) & 0xF).T
    return pack(nibbles(words_AN.T), scale_GN.T, zero_NG, group_size, gate_up)


def from_awq(
    words_AN: torch.Tensor,
    scale_GN: torch.Tensor,
    zeros_BG: torch.Tensor | None = None,
    group_size: int | None = None,
    gate_up: bool = False,
) -> PackedWeight:
    """Repack an AWQ layer as vLLM hands it to its kernels: the order of AWQ undone, `qweight` packed along K.

    So `qweight` is [K/8, N] and `scales` [G, N], as in GPTQ, and `qzeros` [N/8, G], as in compressed-tensors. Read
    against vLLM 0.32.0 (`layers/quantization/auto_awq.py`).
    """
    zero_NG = None if zeros_BG is None else nibbles(zeros_BG.T).T
    return pack(nibbles(words_AN.T), scale_GN.T, zero_NG, group_size, gate_up)


def nibbles(words_NA: torch.Tensor) -> torch.Tensor:
    """The unsigned 4-bit integers, uint8 [N, 8 A], of int32 words of eight each, the first in the lowest bits."""
    rows, words = words_NA.shape
    values = torch.empty(rows, words, VALUES_PER_WORD, dtype=torch.uint8, device=words_NA.device)
    for place in range(VALUES_PER_WORD):
        values[..., place] = words_NA >> 4 * place & 0xF
    return values.flatten(start_dim=1)
