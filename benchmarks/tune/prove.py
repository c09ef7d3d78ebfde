# SPDX-License-Identifier: Apache-2.0
"""The proof: the tuned schedule against every fixed K and against no speculation, and how good the predictions were."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from aerie.benchmarks.points import Record, number
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.sweep import SweepOptions
from aerie.benchmarks.serving.sweep_figures import figures as serving_figures
from aerie.benchmarks.serving.sweep_figures import pooled_rate
from aerie.benchmarks.serving.variants import BASELINE, Variant
from aerie.benchmarks.tune.model import Costs, Load, predict, scheduled
from aerie.server.tuning import Range

TUNED = "tuned"


def variants(arguments: Sequence[str], draft: Sequence[str], most: int, tuning: Path) -> list[Variant]:
    """No draft, K = 1 to `most`, and the schedule in the file `tuning`."""
    own = tuple(arguments)
    drafting = (*own, *draft)
    fixed = [
        Variant(name=f"k{k}", arguments=(*drafting, "--draft-tokens", str(k)), draft_tokens=k)
        for k in range(1, most + 1)
    ]
    return [
        Variant(name=BASELINE, arguments=(*own, "--no-draft"), draft_tokens=0),
        *fixed,
        Variant(name=TUNED, arguments=(*drafting, "--speculation", str(tuning))),
    ]


def predictions(
    costs: Costs, acceptance: Record, schedule: Sequence[Range], most: int, chosen: SweepOptions
) -> dict[tuple[str, int], float]:
    """Tokens per second of each variant at each concurrency, for answers as long as those of the study."""
    lengths, histogram = _numbers(acceptance, "answer_tokens"), _numbers(acceptance, "histogram")
    found = {}
    for concurrency in chosen.concurrencies:
        wanted = chosen.size(concurrency)
        # Whole copies of the lengths, so that the mean is theirs; the rates of a few are averaged.
        loads = [
            Load(concurrency, tuple(lengths[(first + place) % len(lengths)] for place in range(wanted)))
            for first in range(0, max(len(lengths), wanted), wanted)
        ]
        ways = {BASELINE: None, **{f"k{k}": k for k in range(1, most + 1)}, TUNED: schedule}
        for name, way in ways.items():
            found[name, concurrency] = _rate(costs, histogram, way, loads)
    return found


def _rate(costs: Costs, histogram: Sequence[int], way: Sequence[Range] | int | None, loads: Sequence[Load]) -> float:
    def draft_tokens(requests: int) -> int | None:
        return way if way is None or isinstance(way, int) else scheduled(way, requests)

    tokens = [sum(load.answers) for load in loads]
    rates = [predict(costs, histogram, draft_tokens, load, seed) for seed, load in enumerate(loads)]
    return sum(tokens) / sum(one / rate for one, rate in zip(tokens, rates, strict=True))


def _numbers(record: Record, name: str) -> list[int]:
    found = record[name]
    if not isinstance(found, list):
        raise TypeError(f"{name} is not a list: {found}")
    return [int(str(one)) for one in found]


def schedule_runs(schedule: Sequence[Range]) -> list[Run]:
    """The schedule, a run for each range."""
    return [
        Run(benchmark="tune.schedule", measured={"first": first, "last": last, "draft_tokens": k})
        for first, last, k in schedule
    ]


def compared(predicted: Mapping[tuple[str, int], float], served: Sequence[Run]) -> list[Run]:
    """Each prediction beside what was measured, over all rounds."""
    rates = measured_rates(served)
    return [
        Run(
            benchmark="tune.prediction",
            measured={
                "variant": name,
                "draft_tokens": _draft_tokens(name),
                "concurrency": concurrency,
                "predicted_tokens_per_s": round(rate, 2),
                "measured_tokens_per_s": round(rates[name, concurrency], 2) if (name, concurrency) in rates else None,
            },
        )
        for (name, concurrency), rate in predicted.items()
    ]


def _draft_tokens(variant: str) -> int | None:
    if variant == TUNED:
        return None
    return 0 if variant == BASELINE else int(variant[1:])


def measured_rates(served: Sequence[Run]) -> dict[tuple[str, int], float]:
    """Tokens per second by variant and concurrency, pooled over rounds."""
    rounds: dict[tuple[str, int], list[Record]] = {}
    for run in served:
        key = str(run.measured["variant"]), int(number(run.measured, "concurrency"))
        rounds.setdefault(key, []).append(run.measured)
    return {key: pooled_rate(records) for key, records in rounds.items()}


def figures(served: Sequence[Run], pairs: Sequence[Run]) -> dict[str, float]:
    """The figures of the result; those that need a variant or a level that was not measured are left out."""
    rates = measured_rates(served)
    found = dict(serving_figures(served)) if served else {}
    ratios = {}
    for concurrency in sorted({level for _, level in rates}):
        others = [rate for (name, level), rate in rates.items() if level == concurrency and name != TUNED]
        if (TUNED, concurrency) in rates and others:
            ratios[concurrency] = rates[TUNED, concurrency] / max(others)
            found[f"tuned_ratio_c{concurrency}"] = round(ratios[concurrency], 4)
    if ratios:
        found["min_ratio_vs_best"] = round(min(ratios.values()), 4)
    if (TUNED, 1) in rates and (BASELINE, 1) in rates:
        found["speedup_c1"] = round(rates[TUNED, 1] / rates[BASELINE, 1], 4)
    errors = [
        abs(number(one, "predicted_tokens_per_s") / number(one, "measured_tokens_per_s") - 1)
        for one in (run.measured for run in pairs)
        if one["measured_tokens_per_s"] is not None
    ]
    if errors:
        found |= {"prediction_error_median": round(statistics.median(errors), 4), "prediction_error_max": max(errors)}
    return found
