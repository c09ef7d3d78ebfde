# SPDX-License-Identifier: Apache-2.0
"""What a section's maker hands back, and how numbers are written in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from aerie.benchmarks.report.document import Block


@dataclass(frozen=True)
class Findings:
    """One kind of measurement, told."""

    sentences: Sequence[str]
    """The most important first; a report's summary begins with them."""
    blocks: Sequence[Block]
    remarks: Sequence[str] = field(default_factory=tuple)
    """What a reader must know before believing it."""


def plain(value: float | None, digits: int = 3) -> str:
    """Significant digits, never in scientific notation; a dash for what was not measured."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def ratio(value: float | None, spread: float | None = None) -> str:
    """Such as `1.86 ± 0.17×`."""
    if value is None:
        return "–"
    return f"{value:.2f}×" if spread is None else f"{value:.2f} ± {spread:.2f}×"


def pm(value: float, spread: float | None, digits: int = 2) -> str:
    """Such as `4.12 ± 0.03`."""
    return f"{value:.{digits}f}" if spread is None else f"{value:.{digits}f} ± {spread:.{digits}f}"


def joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
