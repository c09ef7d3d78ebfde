# SPDX-License-Identifier: Apache-2.0
"""What a schedule of K will bring: step times joined with acceptance by position.

A step that drafts K tokens for each of b requests takes t(b, K) and yields E[K] tokens a request,

    E[K] = 1 + sum over i = 1 .. K of P(the first i drafted tokens are accepted),

so that b requests get b E[K] / t(b, K) tokens per second. P is measured once, at the largest K. Assumed: that the
draft's first tokens, and so their acceptance, do not depend on how many follow; that acceptance does not depend on the
batch; and that t is linear between the measured numbers of requests.
"""

import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aerie.server.tuning import Range

Rates = Mapping[int, float]
"""By K."""
LAST = 4096
"""Where schedules end: the most that `--max-num-seqs` may be."""


def between(points: Mapping[int, float], place: int) -> float:
    """Linear interpolation; the nearest end's value outside."""
    known = sorted(points)
    if place <= known[0]:
        return points[known[0]]
    if place >= known[-1]:
        return points[known[-1]]
    above = known[bisect_left(known, place)]
    below = max(one for one in known if one < above)
    share = (place - below) / (above - below)
    return points[below] + share * (points[above] - points[below])


@dataclass(frozen=True)
class Costs:
    """Milliseconds: `step` by K and by requests in the step, `plain` without a draft, `entry` by concurrency."""

    step: Mapping[int, Mapping[int, float]]
    plain: Mapping[int, float]
    entry: Mapping[int, float]
    """What one request costs before its second token: HTTP, tokenizing, its prompt, its first token."""

    @property
    def batches(self) -> list[int]:
        """Numbers of requests that were measured."""
        return sorted(self.plain)

    def of_step(self, requests: int, draft_tokens: int | None) -> float:
        """Of a step with so many requests; `None` is a server without a draft."""
        return between(self.plain if draft_tokens is None else self.step[draft_tokens], requests)


def yields(positions: Sequence[float], draft_tokens: int) -> float:
    """E[K], from the shares of steps that accepted the token at each position."""
    return 1 + sum(positions[:draft_tokens])


def rates(costs: Costs, positions: Sequence[float], requests: int) -> dict[int, float]:
    """Tokens per second of a batch, by K."""
    return {
        draft_tokens: 1000 * requests * yields(positions, draft_tokens) / costs.of_step(requests, draft_tokens)
        for draft_tokens in costs.step
    }


def choose(by_batch: Mapping[int, Rates], tolerance: float) -> dict[int, int]:
    """K for each measured number of requests: the highest rates, by their product, of the Ks that never rise.

    They never do where rates are exact, since every further request makes a row dearer; where a rate has noise,
    its neighbours have a say so. For the same reason a change of K must bring `tolerance` of a rate.
    """
    # By the last K: what is lost so far, and the Ks up to here.
    paths: dict[int, tuple[float, list[int]]] = {}
    for batch in sorted(by_batch):
        here = by_batch[batch]
        best = max(here.values())
        paths = {
            k: min(
                (lost + tolerance * (before != k) + math.log(best / rate), [*chosen, k])
                for before, (lost, chosen) in (paths or {k: (0.0, [])}).items()
                if before >= k
            )
            for k, rate in here.items()
            if not paths or max(paths) >= k
        }
    _, ks = min(paths.values())
    return dict(zip(sorted(by_batch), ks, strict=True))


def ranges(chosen: Mapping[int, int], rate_of: Callable[[int, int], float]) -> tuple[Range, ...]:
    """The schedule; between two measured numbers the next K begins where it overtakes by `rate_of(requests, K)`."""
    batches = sorted(chosen)
    starts = [(1, chosen[batches[0]])]
    for low, high in itertools.pairwise(batches):
        old, new = chosen[low], chosen[high]
        if old != new:
            places = range(low + 1, high + 1)
            starts.append((next((one for one in places if rate_of(one, new) > rate_of(one, old)), high), new))
    ends = [start - 1 for start, _ in starts[1:]] + [LAST]
    return tuple((start, end, draft_tokens) for (start, draft_tokens), end in zip(starts, ends, strict=True))


def schedule(costs: Costs, positions: Sequence[float], tolerance: float) -> tuple[Range, ...]:
    """The best K for each number of requests, by step times alone."""
    by_batch = {batch: rates(costs, positions, batch) for batch in costs.batches}
    return ranges(choose(by_batch, tolerance), lambda requests, k: rates(costs, positions, requests)[k])


def scheduled(ranges_: Sequence[Range], requests: int) -> int:
    """K that a schedule has for a number of requests."""
    return next((k for first, last, k in ranges_ if first <= requests <= last), ranges_[-1][2])


@dataclass(frozen=True)
class Load:
    """What is put to the server: so many requests at a time, one after the other; the tokens of each answer."""

    concurrency: int
    answers: tuple[int, ...]


def _drafting(costs: Costs, requests: int, draft_tokens: int | None) -> float:
    """About what drafting costs in a step that only takes requests in, whose entry was measured at K = 0."""
    return costs.of_step(requests, draft_tokens) - costs.of_step(requests, 0) if draft_tokens else 0.0


def predict(
    costs: Costs, histogram: Sequence[int], draft_tokens: Callable[[int], int | None], load: Load, seed: int = 0
) -> float:
    """Output tokens per second of a load, step by step.

    `draft_tokens` gives K for a number of requests, `None` without a draft. `histogram[i]` counts the steps that
    accepted exactly i tokens at the largest K; with a smaller one min(i, K) of them count.
    """
    draws = random.Random(seed)
    accepted_by = range(len(histogram))
    waiting, running, elapsed = list(load.answers)[::-1], list[int](), 0.0
    while waiting or running:
        k = draft_tokens(len(running)) if running else 0
        elapsed += costs.of_step(len(running), k) if running else 0.0
        accepted = draws.choices(accepted_by, histogram, k=len(running))
        running = [left - 1 - min(one, k or 0) for left, one in zip(running, accepted, strict=True)]
        running = [left for left in running if left > 0]
        entering = [waiting.pop() for _ in range(min(len(waiting), load.concurrency - len(running)))]
        elapsed += len(entering) * between(costs.entry, load.concurrency)
        if entering and not running:
            elapsed += _drafting(costs, len(entering), draft_tokens(len(entering)))
        running += [answer - 1 for answer in entering if answer > 1]
    return 1000 * sum(load.answers) / elapsed


def always(draft_tokens: int) -> Callable[[int], int]:
    """One K for every number of requests."""
    return lambda _: draft_tokens


def loads_of(answers: Sequence[int], concurrency: int, requests: int) -> list[Load]:
    """Loads of so many requests whose answers are whole copies of `answers`, so that their mean is theirs."""
    return [
        Load(concurrency, tuple(answers[(first + place) % len(answers)] for place in range(requests)))
        for first in range(0, max(len(answers), requests), requests)
    ]


def rate_of_loads(
    costs: Costs, histogram: Sequence[int], draft_tokens: Callable[[int], int | None], loads: Sequence[Load]
) -> float:
    """Output tokens per second over all loads together; see `predict`."""
    tokens = [sum(load.answers) for load in loads]
    found = [predict(costs, histogram, draft_tokens, load, seed) for seed, load in enumerate(loads)]
    return sum(tokens) / sum(one / rate for one, rate in zip(tokens, found, strict=True))
