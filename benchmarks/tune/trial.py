# SPDX-License-Identifier: Apache-2.0
"""Which K is fastest under load, by trial: predictions are too close to each other to tell.

What a prediction knows least is what drafting costs in steps that take prompts in, where its tokens share a large
product of matrices with theirs; under load most steps do. So at each number of requests in flight the Ks that come
near the best by prediction are put under it, in turn, on the server that has every K, and after `FIRST_ROUNDS` the
best of them again.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from aerie.benchmarks.points import Points, Record, number, whole_numbers
from aerie.benchmarks.serving.sweep_figures import pooled_rate
from aerie.benchmarks.tune.model import Costs, always, between, choose, loads_of, ranges, rate_of_loads
from aerie.server.tuning import Range

MARGIN = 0.12
"""How far below the best by prediction a K may be and yet be tried; predictions are about half as far off."""
FIRST_ROUNDS, FIRST_MOST, THEN_MOST = 2, 5, 3
TOLERANCE = 0.01
"""What a change of K must bring, in all; a rate's standard error is about as large."""
ByLevel = Mapping[int, Mapping[int, float]]
"""Tokens per second by requests in flight and K."""


@dataclass(frozen=True)
class Try:
    """One K under one load, once."""

    concurrency: int
    draft_tokens: int
    index: int
    """The round."""

    @property
    def name(self) -> str:
        """Of its kept point."""
        return f"trial-{self.index}-c{self.concurrency}-k{self.draft_tokens}"


def predicted(costs: Costs, acceptance: Record, sizes: Mapping[int, int]) -> dict[int, dict[int, float]]:
    """Of every K at each concurrency; `sizes` has the requests of a load by concurrency."""
    answers, histogram = whole_numbers(acceptance, "answer_tokens"), whole_numbers(acceptance, "histogram")
    found: dict[int, dict[int, float]] = {}
    for concurrency, size in sizes.items():
        loads = loads_of(answers, concurrency, size)
        found[concurrency] = {k: rate_of_loads(costs, histogram, always(k), loads) for k in sorted(costs.step)}
    return found


def contenders(rates: Mapping[int, float], margin: float, most: int) -> list[int]:
    """The Ks within `margin` of the best rate, `most` of them at most, ascending."""
    best = sorted(rates, key=lambda k: -rates[k])[:most]
    return sorted(k for k in best if rates[k] >= (1 - margin) * rates[best[0]])


def count(first: ByLevel, rounds: int) -> int:
    """How many tries there will be, by the predictions."""
    fields = [len(contenders(rates, MARGIN, FIRST_MOST)) for rates in first.values()]
    early = min(rounds, FIRST_ROUNDS)
    return sum(early * field + (rounds - early) * min(field, THEN_MOST) for field in fields)


def tries(first: ByLevel, rounds: int, points: Points) -> Iterator[Try]:
    """All tries, in order; who takes part in later rounds is read off `points`, where the earlier ones must be kept."""
    for index in range(rounds):
        for concurrency, rates in first.items():
            field = contenders(rates, MARGIN, FIRST_MOST)
            if index >= FIRST_ROUNDS:
                early = _measured(points, concurrency, field, FIRST_ROUNDS)
                field = contenders(early, 1.0, THEN_MOST)
            for k in field if index % 2 == 0 else field[::-1]:
                yield Try(concurrency, k, index)


def _measured(points: Points, concurrency: int, field: Sequence[int], rounds: int) -> dict[int, float]:
    names = {k: [Try(concurrency, k, index).name for index in range(rounds)] for k in field}
    return {
        k: pooled_rate([record for name in mine for record in points.found(name) or []]) for k, mine in names.items()
    }


def outcome(records: Sequence[Record]) -> dict[int, dict[int, float]]:
    """By concurrency, the rate of each K that was tried.

    In each round a K is compared with the middle one of those that were in all rounds, and of its rounds the middle one
    counts: what else a shared machine does for some seconds takes a third of a turn's rate.
    """
    found: dict[int, dict[int, dict[int, float]]] = {}
    for one in records:
        by_k = found.setdefault(int(number(one, "concurrency")), {})
        by_round = by_k.setdefault(int(number(one, "draft_tokens")), {})
        by_round[int(number(one, "index"))] = pooled_rate([one])
    return {concurrency: _rates(by_k) for concurrency, by_k in found.items()}


def _rates(by_k: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    most = max(len(mine) for mine in by_k.values())
    lasting = [mine for mine in by_k.values() if len(mine) == most]
    middle = {index: statistics.median(mine[index] for mine in lasting) for index in lasting[0]}
    usual = statistics.fmean(middle.values())
    return {
        k: usual * statistics.median(rate / middle[index] for index, rate in mine.items()) for k, mine in by_k.items()
    }


def corrections(first: ByLevel, measured: ByLevel) -> dict[int, float]:
    """By concurrency, what to multiply predictions by: the mean over the Ks that were tried."""
    return {
        level: statistics.fmean(rate / first[level][k] for k, rate in rates.items())
        for level, rates in measured.items()
    }


def schedule(first: ByLevel, measured: ByLevel) -> tuple[Range, ...]:
    """The schedule of the Ks that won; between two loads the next one begins where it overtakes.

    There rates are interpolated. Those of a K that was not tried at a load are predictions, moved by as much as the
    others' were off.
    """
    moved = {}
    for level, rates in measured.items():
        off = corrections(first, measured)[level]
        moved[level] = {k: rates.get(k, off * rate) for k, rate in first[level].items()}

    def rate_of(requests: int, k: int) -> float:
        return between({level: rates[k] for level, rates in moved.items()}, requests)

    return ranges(choose(moved, TOLERANCE), rate_of)
