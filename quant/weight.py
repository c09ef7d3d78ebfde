# SPDX-License-Identifier: Apache-2.0
"""A weight in 4 bits, whatever method chose its integers and whatever format it will lie in.

Shape suffixes: N outputs, K inputs, G groups of S inputs (K = G * S).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

LEVELS = 15
"""Steps between the least and the greatest of 16 levels."""
MIDDLE = 8
"""The level that stands for zero in a symmetric weight."""
CHUNK_WEIGHTS = 2**18
"""Weights that a processor computes on at a time: their float32 copies stay in its cache."""
GPU_CHUNK_WEIGHTS = 2**24
"""The same of other devices, which want fewer and larger operations."""


def chunk_rows(weight_NK: torch.Tensor) -> int:
    """How many rows of a weight to compute on at a time, so that temporaries are small beside a layer."""
    weights = CHUNK_WEIGHTS if weight_NK.device.type == "cpu" else GPU_CHUNK_WEIGHTS
    return max(1, weights // weight_NK.shape[1])


@dataclass(frozen=True)
class Scheme:
    """What a stored weight can express."""

    group_size: int
    """Consecutive inputs that share a scale; 0 for one group of all inputs (per channel)."""
    symmetric: bool = True
    """Zero is always level 8; else every group has a zero point of its own."""
    scale_dtype: torch.dtype = torch.bfloat16
    """What the format stores scales in. Methods choose integers against the scale as stored."""

    def groups(self, inputs: int) -> int:
        """G for a layer of K inputs; K must be a multiple of the group size."""
        return inputs // self.group_size if self.group_size else 1

    def stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales as they will be read back, in `scale_dtype`; zeros become 1, as their group holds zeros only.

        A float16 scale is rounded to bfloat16 first: engines of both types then compute with the same value, since
        what float16 drops of a small bfloat16 leaves one of fewer bits.
        """
        rounded = scale.to(torch.bfloat16).to(self.scale_dtype)
        return torch.where(rounded > 0, rounded, torch.ones_like(rounded))


@dataclass(frozen=True)
class Int4Weight:
    """w = (q - zero) * scale."""

    q_NK: torch.Tensor
    """uint8 in [0, 15]."""
    scale_NG: torch.Tensor
    """In the type it is stored in."""
    zero_NG: torch.Tensor | None = None
    """uint8 in [0, 15]; None is 8 everywhere."""

    def dequantise(self) -> torch.Tensor:
        """The float32 weight [N, K]. Exact: an integer of 5 bits times a scale of 8 or 11."""
        n, k = self.q_NK.shape
        groups = self.scale_NG.shape[1]
        zero = float(MIDDLE) if self.zero_NG is None else self.zero_NG.float().unsqueeze(-1)
        centred_NGS = self.q_NK.float().reshape(n, groups, k // groups) - zero
        return (centred_NGS * self.scale_NG.float().unsqueeze(-1)).reshape(n, k)

    def split(self, rows: int) -> Iterator["Int4Weight"]:
        """Parts of so many rows, as `torch.split`."""
        for first in range(0, len(self.q_NK), rows):
            part = slice(first, first + rows)
            zero_NG = None if self.zero_NG is None else self.zero_NG[part]
            yield Int4Weight(self.q_NK[part], self.scale_NG[part], zero_NG)

    def dequantise_into(self, weight_NK: torch.Tensor) -> None:
        """Write what `dequantise` gives over a weight, without making it as a whole."""
        rows = chunk_rows(weight_NK)
        for target_NK, part in zip(weight_NK.split(rows), self.split(rows), strict=True):
            target_NK.copy_(part.dequantise())

    def cpu(self) -> "Int4Weight":
        """The same in the main memory."""
        return Int4Weight(self.q_NK.cpu(), self.scale_NG.cpu(), None if self.zero_NG is None else self.zero_NG.cpu())
