# SPDX-License-Identifier: Apache-2.0
"""One random linear layer, and the ways to compute it: ours and what stands against it.

Every way is on the same weight, and reads copies of it that lie elsewhere in memory.

Shape suffixes: M rows, N outputs, K inputs, G groups.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from aerie.benchmarks.kernels.gpu.shapes import GROUP_SIZE, Shape
from aerie.kernels.int4_gemm import api, reference
from aerie.kernels.int4_gemm.pack import PackedWeight, pack
from aerie.kernels.int4_gemm.tuning import Cut, bucket

COPIES = 16
MEMORY_SHARE = 0.8
L2_TIMES = 2
"""Copies must hold so many times what the second-level cache holds, or a weight may still lie in it."""
EXACT_OUTPUTS = 8192


class Weight(NamedTuple):
    """A symmetric INT4 weight in groups of 128, as every kernel gets it before it repacks it for itself."""

    q_NK: Tensor
    """uint8, in [0, 15]; 8 is zero."""
    scale_NG: Tensor
    """In the dtype of the activations."""

    @classmethod
    def random(cls, shape: Shape, dtype: torch.dtype, device: str) -> Self:
        """Every integer and every scale by chance, outputs of about the size of inputs."""
        q_NK = torch.randint(0, 16, (shape.outputs, shape.inputs), dtype=torch.uint8, device=device)
        scale_NG = torch.rand(shape.outputs, shape.inputs // GROUP_SIZE, device=device) + 0.5
        return cls(q_NK, (scale_NG / 4.6 / shape.inputs**0.5).to(dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and scales."""
        return self.scale_NG.dtype

    def dequantise(self, dtype: torch.dtype, outputs: slice = slice(None)) -> Tensor:
        """The weight [N, K], or some rows of it."""
        return reference.dequantise(self.q_NK[outputs], self.scale_NG[outputs], None, GROUP_SIZE, dtype)

    def exact(self, x_MK: Tensor) -> Tensor:
        """The product [M, N] in float64, by as many outputs at a time as leave memory for others."""
        parts = range(0, len(self.q_NK), EXACT_OUTPUTS)
        return torch.cat(
            [x_MK.double() @ self.dequantise(torch.float64, slice(n, n + EXACT_OUTPUTS)).T for n in parts], dim=1
        )


@dataclass(frozen=True)
class Way:
    """How to compute a layer: what is read of its weight, and the call that multiplies x by it."""

    tensors: tuple[Tensor, ...]
    call: Callable[..., Tensor]
    """Of the layer's inputs, then the tensors."""

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The layer's output."""
        return self.call(*inputs, *self.tensors)

    def copies(self, count: int) -> Iterator["Way"]:
        """So many of it, each with its tensors elsewhere in memory."""
        yield self
        for _ in range(count - 1):
            yield Way(tuple(tensor.clone() for tensor in self.tensors), self.call)


def multiply(packed: PackedWeight, cuts: Mapping[str, Cut]) -> Callable[..., Tensor]:
    """The call of a weight packed like this one, cut as told for a bucket of M, else as the table of this GPU says."""

    def call(x_MK: Tensor, words_TNW: Tensor, tables_TRN: Tensor, control: Tensor) -> Tensor:
        one = packed._replace(words_TNW=words_TNW, tables_TRN=tables_TRN, control=control)
        cut = cuts.get(bucket(len(x_MK)))
        return api.int4_gemm(x_MK, one) if cut is None else api.run_kernel(x_MK, one, None, None, cut)

    return call


def ours(weight: Weight, cuts: Mapping[str, Cut] = MappingProxyType({})) -> Way:
    """`int4_gemm`."""
    packed = pack(weight.q_NK, weight.scale_NG, group_size=GROUP_SIZE)
    return Way((packed.words_TNW, packed.tables_TRN, packed.control), multiply(packed, cuts))


def cublas(weight: Weight) -> Way:
    """The weight in 16 bit, multiplied by `F.linear`, which on NVIDIA GPUs is cuBLAS."""
    return Way((weight.dequantise(weight.dtype),), torch.nn.functional.linear)


def copies_that_fit(ways_bytes: int, free_bytes: int) -> int:
    """COPIES, or as many as memory has room for; 0 when it has room for none."""
    return min(COPIES, int(MEMORY_SHARE * free_bytes) // ways_bytes)


def past_the_cache(copies: int, read_bytes: int, cache_bytes: int) -> bool:
    """Whether so many copies are more than the second-level cache can keep from one turn to the next."""
    return copies * read_bytes >= L2_TIMES * cache_bytes
