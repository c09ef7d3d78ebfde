# SPDX-License-Identifier: Apache-2.0
"""A float32 weight that 16 bits can hold, and a 16-bit integer for each of its numbers, in the weight's own memory.

Shape suffixes: N outputs, K inputs.
"""

import torch
from torch import Tensor

from aerie.quant.weight import chunk_rows

KINDS = (torch.bfloat16, torch.float16)


class Halves:
    """Takes a weight's memory, until `restore`: the first half for its numbers, the second for integers.

    A weight that needs all its 32 bits stays as it is, and the integers take memory of their own.
    """

    def __init__(self, weight_NK: Tensor) -> None:
        self._whole_NK = weight_NK
        kind = next((kind for kind in KINDS if _fits(weight_NK, kind)), None)
        self.integer_NK: Tensor
        """int16, 0 at first."""
        self.weight_NK: Tensor
        """The weight, in the type that holds it."""
        if kind is None:
            self.weight_NK, self.integer_NK = weight_NK, torch.zeros_like(weight_NK, dtype=torch.int16)
            return
        self.weight_NK, spare_NK = weight_NK.view(kind).view(2, *weight_NK.shape)
        # From the front: what is written lies before what is still to be read, and `to` makes a copy.
        for whole, half in _chunks(self._whole_NK, self.weight_NK):
            half.copy_(whole.to(kind))
        self.integer_NK = spare_NK.view(torch.int16).zero_()

    def restore(self) -> None:
        """Put the float32 weight back; the integers are lost."""
        if self.weight_NK is self._whole_NK:
            return
        for whole, half in reversed(_chunks(self._whole_NK, self.weight_NK)):
            whole.copy_(half.float())


def _fits(weight_NK: Tensor, kind: torch.dtype) -> bool:
    return all(torch.equal(part.to(kind).float(), part) for part in weight_NK.split(chunk_rows(weight_NK)))


def _chunks(whole_NK: Tensor, half_NK: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows = chunk_rows(whole_NK)
    return list(zip(whole_NK.split(rows), half_NK.split(rows), strict=True))
