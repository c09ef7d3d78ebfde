# SPDX-License-Identifier: Apache-2.0
"""The proof: the tuned schedule against every fixed K and against no speculation, and how good the predictions were."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from aerie.benchmarks.points import Record, number, whole_numbers
from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.sweep import Sweep, SweepOptions
from aerie.benchmarks.serving.sweep_figures import figures as serving_figures
from aerie.benchmarks.serving.sweep_figures import pooled_rate
from aerie.benchmarks.serving.variants import BASELINE, Variant
from aerie.benchmarks.tune.model import Costs, always, loads_of, rate_of_loads, scheduled
from aerie.server.tuning import Range

TUNED = "tuned"
FINAL_MARGIN, FINAL_MOST = 0.06, 4
"""How far below the best of the others one may be to be measured on, and how many of them at most."""


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
    lengths, histogram = whole_numbers(acceptance, "answer_tokens"), whole_numbers(acceptance, "histogram")
    ways: dict[str, Callable[[int], int | None]] = {
        BASELINE: lambda _: None,
        **{f"k{k}": always(k) for k in range(1, most + 1)},
        TUNED: partial(scheduled, schedule),
    }
    found = {}
    for concurrency in chosen.concurrencies:
        loads = loads_of(lengths, concurrency, chosen.size(concurrency))
        for name, way in ways.items():
            found[name, concurrency] = rate_of_loads(costs, histogram, way, loads)
    return found


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


def finalists(served: Sequence[Run]) -> dict[int, list[str]]:
    """By concurrency: the schedule, and the variants that may be the best other one there."""
    rates = measured_rates(served)
    found: dict[int, list[str]] = {}
    for concurrency in dict.fromkeys(level for _, level in rates):
        others = {name: rate for (name, level), rate in rates.items() if level == concurrency and name != TUNED}
        best = sorted(others, key=lambda name: -others[name])[:FINAL_MOST]
        close = [name for name in best if others[name] >= (1 - FINAL_MARGIN) * others[best[0]]]
        found[concurrency] = [*close, TUNED]
    return found


def finals(plan: Sweep, prompts: Sequence[Prompt], rounds: int, served: Sequence[Run]) -> Sweep:
    """The rounds after those of `plan`, for the finalists of its runs."""
    chosen = plan.options.model_copy(update={"rounds": rounds, "first_round": plan.options.rounds})
    return Sweep(plan.variants, dict.fromkeys(plan.pools, prompts), chosen, finalists(served))


ByRound = dict[int, Record]


def _by_round(served: Sequence[Run], concurrency: int) -> dict[str, ByRound]:
    found: dict[str, ByRound] = {}
    for run in served:
        if run.measured["concurrency"] == concurrency:
            found.setdefault(str(run.measured["variant"]), {})[int(number(run.measured, "index"))] = run.measured
    return found


def ratios(served: Sequence[Run], concurrency: int) -> dict[str, float]:
    """The schedule's tokens per second over those of the best other variant.

    `tuned_ratio` takes as the best in each round the one that was in the other rounds: were it chosen by the rates that
    it is then compared by, the best of several equals would come out ahead of them all. `tuned_hindsight` is
    that, of all rounds pooled. The median over rounds counts, since a shared machine has bad seconds.
    """
    by_round = _by_round(served, concurrency)
    tuned = by_round.pop(TUNED, {})
    most = max((len(mine) for mine in by_round.values()), default=0)
    # Of those that went all the way, the last round of an interrupted run apart; the others are known to be slower.
    others = [mine for mine in by_round.values() if len(mine) >= most - 1]
    rounds = [index for index in sorted(tuned) if all(index in mine for mine in others)]
    if not others or not rounds:
        return {}
    hindsight = _rate(tuned, rounds) / max(_rate(mine, rounds) for mine in others)
    if len(rounds) == 1:
        return {"tuned_ratio": hindsight, "tuned_hindsight": hindsight}
    best = [_best(others, [one for one in rounds if one != index])[index] for index in rounds]
    each = [_rate(tuned, [index]) / pooled_rate([other]) for index, other in zip(rounds, best, strict=True)]
    return {
        "tuned_ratio": statistics.median(each),
        "tuned_ratio_std": statistics.stdev(each),
        "tuned_hindsight": hindsight,
    }


def _best(others: Sequence[ByRound], rounds: Sequence[int]) -> ByRound:
    return max(others, key=lambda mine: _rate(mine, rounds))


def _rate(mine: ByRound, rounds: Sequence[int]) -> float:
    return pooled_rate([mine[index] for index in rounds])


def figures(served: Sequence[Run], pairs: Sequence[Run]) -> dict[str, float]:
    """The figures of the result; those that need a variant or a level that was not measured are left out."""
    rates = measured_rates(served)
    found = dict(serving_figures(served)) if served else {}
    by_level = {level: ratios(served, level) for level in sorted({level for _, level in rates})}
    for level, own in by_level.items():
        for name, value in own.items():
            stem, spread, _ = name.partition("_std")
            found[f"{stem}_c{level}{spread}"] = round(value, 4)
    known = [own for own in by_level.values() if own]
    if known:
        found["min_ratio_vs_best"] = round(min(own["tuned_ratio"] for own in known), 4)
        found["min_hindsight_vs_best"] = round(min(own["tuned_hindsight"] for own in known), 4)
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
