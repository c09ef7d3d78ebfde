# SPDX-License-Identifier: Apache-2.0
"""From timed epochs of two trainers to figures: tokens per second, their ratio, its spread over rounds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aerie.benchmarks.errors import BenchmarkError

Side = Literal["ours", "speculators"]
SIDES: tuple[Side, Side] = ("ours", "speculators")


@dataclass(frozen=True)
class Timed:
    """One side's training on one round's documents."""

    side: Side
    arrangement: str
    """How documents meet in a forward pass: `padded`, `single`, `packed512` and the like."""
    supervision: str
    """`answers`, as captured; `all` when every token was supervised."""
    steps: int
    round: int
    tokens: int
    """Of documents; padding does not count."""
    updates: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second."""
        return self.tokens / self.seconds


def order(round_: int) -> tuple[Side, Side]:
    """Who goes first: swapped from one round to the next, so that a drifting machine favours nobody."""
    return SIDES if round_ % 2 == 0 else (SIDES[1], SIDES[0])


def fastest(pilot: Sequence[Timed]) -> str:
    """The arrangement with the most tokens per second."""
    if not pilot:
        raise BenchmarkError("nothing was tried")
    return max(pilot, key=lambda one: one.tokens_per_s).arrangement


def ratio_figures(timed: Sequence[Timed], suffix: str) -> dict[str, float]:
    """The ratio of tokens per second pooled over rounds, and over single rounds its spread and least value.

    Raises BenchmarkError when a round lacks a side, or the sides saw different documents.
    """
    by_key = {(one.round, one.side): one for one in timed}
    rounds = sorted({one.round for one in timed})
    try:
        pairs = [(by_key[index, SIDES[0]], by_key[index, SIDES[1]]) for index in rounds]
    except KeyError as error:
        raise BenchmarkError(f"round and side {error} were not measured") from error
    if len(pairs) < 2:
        raise BenchmarkError("at least two rounds are needed for a spread")
    different = [mine.round for mine, theirs in pairs if mine.tokens != theirs.tokens]
    if different:
        raise BenchmarkError(f"rounds {different}: the sides trained on different numbers of tokens")
    ratios = [mine.tokens_per_s / theirs.tokens_per_s for mine, theirs in pairs]
    pooled = [sum(one.tokens for one in side) / sum(one.seconds for one in side) for side in zip(*pairs, strict=True)]
    figures = {
        f"speed_ratio_{suffix}": pooled[0] / pooled[1],
        f"speed_ratio_{suffix}_std": statistics.stdev(ratios),
        f"speed_ratio_{suffix}_min": min(ratios),
        f"tokens_per_s_ours_{suffix}": pooled[0],
        f"tokens_per_s_speculators_{suffix}": pooled[1],
    }
    return {name: round(value, 4) for name, value in figures.items()}
