# SPDX-License-Identifier: Apache-2.0
"""How memory grows with the length of a document: peaks, and the quadratic part of each curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aerie.benchmarks.errors import BenchmarkError

MIB = 2**20


@dataclass(frozen=True)
class Peak:
    """One forward and backward pass."""

    side: str
    length: int
    steps: int
    peak_bytes: int


def quadratic(peaks: Mapping[int, int]) -> float:
    """Bytes per L^2: c of the parabola a + b L + c L^2 through the peaks of three lengths."""
    if len(peaks) != 3:
        raise BenchmarkError(f"a parabola goes through three lengths, not {len(peaks)}")
    (x, p), (y, q), (z, r) = sorted(peaks.items())
    return ((r - q) / (z - y) - (q - p) / (y - x)) / (z - x)


def growth_figures(peaks: Sequence[Peak]) -> dict[str, float]:
    """Every peak in MiB, and the quadratic part of every curve in bytes per L^2."""
    curves: dict[tuple[str, int], dict[int, int]] = {}
    for one in peaks:
        curves.setdefault((one.side, one.steps), {})[one.length] = one.peak_bytes
    figures = {
        f"peak_mib_{side}_ttt{steps}_{length}": round(peak / MIB, 2)
        for (side, steps), curve in sorted(curves.items())
        for length, peak in sorted(curve.items())
    }
    return figures | {
        f"quadratic_bytes_{side}_ttt{steps}": round(quadratic(curve), 3)
        for (side, steps), curve in sorted(curves.items())
    }
