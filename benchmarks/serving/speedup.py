# SPDX-License-Identifier: Apache-2.0
"""From rounds to figures: the speed-up, its spread, and whether both servers said the same."""

import statistics
from collections.abc import Sequence

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.serving.rounds import Round

WITH, WITHOUT = "draft", "no_draft"


class TextsDifferError(BenchmarkError):
    """The servers answered differently at temperature 0: the speed-up would compare different work."""


def pairs(rounds: Sequence[Round], concurrency: int, first: str, second: str) -> list[tuple[Round, Round]]:
    """What two servers did in each round at a concurrency, in the order of rounds."""
    by_key = {(one.server, one.index): one for one in rounds if one.concurrency == concurrency}
    indices = sorted({index for _, index in by_key})
    return [(by_key[first, index], by_key[second, index]) for index in indices]


def pooled_rate(side: Sequence[Round]) -> float:
    """Output tokens per second of one server over all of its rounds."""
    return sum(one.report.output_tokens for one in side) / sum(one.report.duration_s for one in side)


def levels(rounds: Sequence[Round]) -> list[int]:
    """The concurrencies measured, ascending."""
    return sorted({one.concurrency for one in rounds})


def check_same_texts(rounds: Sequence[Round]) -> dict[str, float]:
    """Share of prompts with identical texts from both servers, by concurrency.

    At concurrency 1 anything but 1.0 raises TextsDifferError. Above it the composition of batches depends on timing,
    and with it the rounding of near-ties, for one and the same server too: there the share is reported.
    """
    shares = {}
    for concurrency in levels(rounds):
        sides = [(a.report.texts, b.report.texts) for a, b in pairs(rounds, concurrency, WITH, WITHOUT)]
        texts = [pair for side in sides for pair in zip(*side, strict=True)]
        different = [pair for pair in texts if pair[0] != pair[1]]
        if concurrency == 1 and different:
            drafted, plain = different[0]
            counted = f"{len(different)} of {len(texts)} texts differ"
            raise TextsDifferError(f"{counted}, first {drafted!r} with the draft and {plain!r} without")
        shares[f"c{concurrency}"] = 1 - len(different) / len(texts)
    return shares


def speedup_figures(rounds: Sequence[Round]) -> dict[str, float]:
    """For each concurrency: the ratio of output tokens per second pooled over rounds, and its spread over rounds."""
    figures: dict[str, float] = {}
    for concurrency in levels(rounds):
        both = pairs(rounds, concurrency, WITH, WITHOUT)
        ratios = [a.report.output_tokens_per_s / b.report.output_tokens_per_s for a, b in both]
        pooled = [pooled_rate(side) for side in zip(*both, strict=True)]
        suffix = f"c{concurrency}"
        figures |= {
            f"speedup_{suffix}": pooled[0] / pooled[1],
            f"speedup_{suffix}_std": statistics.stdev(ratios),
            f"speedup_{suffix}_min": min(ratios),
            f"output_tokens_per_s_draft_{suffix}": pooled[0],
            f"output_tokens_per_s_no_draft_{suffix}": pooled[1],
        }
    return {name: round(value, 4) for name, value in figures.items()}
