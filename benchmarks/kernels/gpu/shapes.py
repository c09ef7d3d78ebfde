# SPDX-License-Identifier: Apache-2.0
"""What is measured: linear layers, a mixture of experts, numbers of rows; and the bytes that a call must move."""

from dataclasses import dataclass

GROUP_SIZE = 128
ROWS = (1, 2, 4, 8, 16, 32, 64)
BYTES_PER_WEIGHT = 0.5 + 2 / GROUP_SIZE
"""Of a symmetric weight: four bits, and its share of a 16-bit scale."""


@dataclass(frozen=True)
class Shape:
    """A linear layer of K inputs and N outputs."""

    inputs: int
    outputs: int

    @property
    def name(self) -> str:
        """KxN, as figures name it."""
        return f"{self.inputs}x{self.outputs}"

    def moved_bytes(self, rows: int) -> int:
        """Integers, scales, x and y, each once."""
        return round(self.inputs * self.outputs * BYTES_PER_WEIGHT) + 2 * rows * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: for each token `chosen` of `experts` MLPs."""

    hidden: int
    inner: int
    experts: int
    chosen: int

    @property
    def name(self) -> str:
        """As figures name it."""
        return f"moe_{self.hidden}x{self.inner}_e{self.experts}"

    def moved_bytes(self, rows: int, used: float) -> int:
        """Integers and scales of the `used` experts, x, y and the inner activations that lie between two kernels."""
        weights = 3 * self.hidden * self.inner * BYTES_PER_WEIGHT
        return round(used * weights) + 2 * rows * (2 * self.hidden + 2 * self.chosen * self.inner)


SHAPES = (
    Shape(4096, 4096),
    Shape(4096, 6144),
    Shape(4096, 12288),
    Shape(12288, 4096),
    Shape(4096, 24576),
    Shape(4096, 151936),  # the lm_head of Qwen3-8B
)
QWEN3_235B = Experts(hidden=4096, inner=1536, experts=128, chosen=8)
