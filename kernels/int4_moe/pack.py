# SPDX-License-Identifier: Apache-2.0
"""Stack the experts of a layer, each packed as `int4_gemm/pack.py` packs a weight; and back.

Shape suffixes: E experts; T, N, W, R, K, G, B as there: tiles, outputs, words of a row of a tile, rows of a table,
inputs, groups, words of eight outputs.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from aerie.kernels.int4_gemm import UnsupportedError
from aerie.kernels.int4_gemm import pack as of_one
from aerie.kernels.int4_gemm.pack import TILE, PackedWeight, control, nibbles

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word AWQ stores the outputs of eight, in their order."""


class PackedExperts(NamedTuple):
    """What the operator reads of all gates and ups of a layer, or of all downs."""

    words_ETNW: torch.Tensor
    tables_ETRN: torch.Tensor
    inputs: int
    group_size: int
    """64 or 128."""
    scale_dtype: torch.dtype
    """bfloat16 or float16."""
    gate_up: bool
    """Rows alternate between gate and up, and the product yields SiLU(gate) * up."""

    @property
    def experts(self) -> int:
        """E."""
        return self.words_ETNW.shape[0]

    @property
    def outputs(self) -> int:
        """N."""
        return self.words_ETNW.shape[2]

    @property
    def asymmetric(self) -> bool:
        """Whether there are zero points."""
        return self.tables_ETRN.shape[2] > TILE // self.group_size

    def expert(self, index: int) -> PackedWeight:
        """One of them, as a layer of its own; its tensors are views."""
        words_TNW, tables_TRN = self.words_ETNW[index], self.tables_ETRN[index]
        counters = control(self.outputs, words_TNW.device)
        return PackedWeight(
            words_TNW,
            tables_TRN,
            counters,
            self.outputs,
            self.inputs,
            self.group_size,
            self.asymmetric,
            self.scale_dtype,
            self.gate_up,
        )


def stack(weights: Iterable[PackedWeight]) -> PackedExperts:
    """Put packed weights of one shape and kind into one.

    Raises:
        UnsupportedError: they differ, or there are none.
    """
    packed = list(weights)
    kinds = {(*one.words_TNW.shape, *one[3:]) for one in packed}
    if len(kinds) != 1:
        raise UnsupportedError(f"experts of one layer must be alike, but there are {len(kinds)} kinds of them")
    first = packed[0]
    words_ETNW = torch.stack([one.words_TNW for one in packed])
    tables_ETRN = torch.stack([one.tables_TRN for one in packed])
    return PackedExperts(words_ETNW, tables_ETRN, first.inputs, first.group_size, first.scale_dtype, first.gate_up)


def pack_experts(
    read: Callable[..., PackedWeight],
    words_E: torch.Tensor,
    scales_E: torch.Tensor,
    zeros_E: torch.Tensor | None = None,
    group_size: int | None = None,
    gate_up: bool = False,
    **options: int,
) -> PackedExperts:
    """Pack all experts of a layer as a checkpoint has them, one along the first dimension.

    Args:
        read: what reads one: `from_compressed_tensors` or `from_gptq` of `int4_gemm/pack.py`, `from_awq` there or
            `from_stored_awq` here. vLLM 0.32.0 and 0.33.0 load experts as these expect them; AWQ's as the last does.
        words_E: integers, packed.
        scales_E: scales.
        zeros_E: zero points; None is 8 everywhere.
        group_size: inputs that share a scale, PER_CHANNEL for all of them; None is K / G.
        gate_up: the outputs are those of gate, then those of up, and the product is to yield SiLU(gate) * up.
        options: further ones of `read`.

    Raises:
        UnsupportedError: the kernel does not take such groups, or shapes do not fit together.
    """
    zeros = [None] * len(words_E) if zeros_E is None else list(zeros_E)
    experts = zip(words_E, scales_E, zeros, strict=True)
    return stack(read(*one, group_size=group_size, gate_up=gate_up, **options) for one in experts)


def from_stored_awq(
    words_KB: torch.Tensor,
    scale_GN: torch.Tensor,
    zeros_GB: torch.Tensor | None = None,
    group_size: int | None = None,
    gate_up: bool = False,
) -> PackedWeight:
    """Repack `qweight` [K, N/8], `scales` [G, N] and `qzeros` [G, N/8] of an AWQ layer as its checkpoint has them."""
    zero_NG = None if zeros_GB is None else _awq_outputs(zeros_GB)
    return of_one.pack(_awq_outputs(words_KB), scale_GN.T, zero_NG, group_size, gate_up)


def _awq_outputs(words_AB: torch.Tensor) -> torch.Tensor:
    values_AN = nibbles(words_AB)
    return values_AN.view(len(values_AN), -1, len(AWQ_PLACES))[..., AWQ_PLACES].flatten(start_dim=1).T


def unpack(packed: PackedExperts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Integers uint8 [E, N, K], scales [E, N, G] and zero points uint8 [E, N, G] or None, in the operator's groups."""
    q, scale, zero = zip(*(of_one.unpack(packed.expert(index)) for index in range(packed.experts)), strict=True)
    return torch.stack(q), torch.stack(scale), torch.stack(zero) if packed.asymmetric else None
