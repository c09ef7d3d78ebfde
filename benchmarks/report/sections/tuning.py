# SPDX-License-Identifier: Apache-2.0
"""A tuning: step times, the K chosen for each batch, what was predicted and measured, and the schedule's proof."""

import re
from collections.abc import Mapping, Sequence

from aerie.benchmarks.points import Record
from aerie.benchmarks.report.cells import numbers
from aerie.benchmarks.report.document import Block, Paragraph, Picture, Table
from aerie.benchmarks.report.sections.findings import Findings, plain
from aerie.benchmarks.results_file import ResultFile
from aerie.chart import Line, Lines

STEP, PREDICTION, SCHEDULE, TRIAL = "tune.step", "tune.prediction", "tune.schedule", "tune.trial"
DASH = "6 4"
TRIED = "How the K was chosen: tokens per second under load of those that were near the best by prediction."


def findings(result: ResultFile) -> Findings | None:
    """What the runs of `aerie tune` come to; None where there are none."""
    steps, predicted = (_runs(result, name) for name in (STEP, PREDICTION))
    ratios = ratios_by_load(result.figures)
    if not (steps or predicted or ratios):
        return None
    blocks: list[Block] = []
    if ratios:
        alt = "The tuned schedule's tokens per second over those of the best other variant, at each load."
        blocks.append(Picture("tuned-against-best", alt, [_against_best(result.figures, ratios)]))
    ranges = schedule(_runs(result, SCHEDULE))
    chosen = at_levels(ranges, predicted) if ranges else best_k(predicted)
    if chosen:
        of = "that the schedule has" if ranges else "with the highest predicted throughput when fixed"
        alt = f"The number of drafted tokens {of}, by requests in flight; 0 is none."
        blocks.append(Picture("tuned-k", alt, [_chosen(chosen)]))
    if steps:
        alt = "Time of one step by requests in it, for each number of drafted tokens K."
        blocks.append(Picture("step-times", alt, [step_times(steps)]))
    if predicted:
        alt = "Predicted against measured throughput: a point for each K and load; on the line they agree."
        blocks.append(Picture("prediction", alt, [_predictions(predicted)]))
        blocks.append(_table(result.figures, predicted, chosen))
    if tried := _runs(result, TRIAL):
        blocks += [Paragraph(TRIED), trials(tried, chosen)]
    remarks = ["Step times and acceptance hold for this machine, this checkpoint and these prompts alone."]
    if not ratios:
        remarks.append("The schedule was not run beside the fixed numbers of drafted tokens: it is not proven here.")
    return Findings(_sentences(result.figures, chosen, scheduled=bool(ranges)), blocks, remarks)


def _runs(result: ResultFile, benchmark: str) -> list[Record]:
    return [run.measured for run in result.runs if run.benchmark == benchmark]


def ratios_by_load(figures: Mapping[str, float]) -> dict[int, float]:
    """`tuned_ratio_cN` by N, ascending."""
    found = {
        int(match[1]): value for name, value in figures.items() if (match := re.fullmatch(r"tuned_ratio_c(\d+)", name))
    }
    return dict(sorted(found.items()))


Range = tuple[int, int, int]
"""First and last number of requests in a step, and K for them."""


def schedule(runs: Sequence[Record]) -> list[Range]:
    """The ranges of a schedule, ascending; empty where the result does not hold it."""
    found = [[numbers([one], name) for name in ("first", "last", "draft_tokens")] for one in runs]
    return sorted((int(a[0]), int(b[0]), int(k[0])) for a, b, k in found if a and b and k)


def at_levels(ranges: Sequence[Range], predicted: Sequence[Record]) -> dict[int, int]:
    """The K of a schedule at each concurrency that was predicted, ascending."""
    levels = sorted({int(one) for one in numbers(predicted, "concurrency")}) or [first for first, _, _ in ranges]
    return {level: next((k for first, last, k in ranges if first <= level <= last), ranges[-1][2]) for level in levels}


def best_k(predicted: Sequence[Record]) -> dict[int, int]:
    """The K with the highest predicted throughput at each concurrency, ascending."""
    best: dict[int, tuple[float, int]] = {}
    for one in predicted:
        found = [numbers([one], name) for name in ("concurrency", "draft_tokens", "predicted_tokens_per_s")]
        if all(found):
            (concurrency,), (draft_tokens,), (rate,) = found
            best[int(concurrency)] = max(best.get(int(concurrency), (0.0, 0)), (rate, int(draft_tokens)))
    return {level: best[level][1] for level in sorted(best)}


def _against_best(figures: Mapping[str, float], ratios: Mapping[int, float]) -> Lines:
    levels = list(ratios)
    spread = [figures.get(f"tuned_ratio_c{level}_std", 0.0) for level in levels]
    measured = Line("tuned", [(float(at), ratios[level]) for at, level in enumerate(levels)], spread=spread)
    as_fast = Line("the best other", [(float(at), 1.0) for at in range(len(levels))], dash=DASH)
    labels = [str(level) for level in levels]
    return Lines("Tuned against the best of the others", "requests in flight", "times", [as_fast, measured], labels)


def _chosen(chosen: Mapping[int, int]) -> Lines:
    points = [(float(at), float(k)) for at, k in enumerate(chosen.values())]
    curve = Line("K", points, notes=[str(k) for k in chosen.values()])
    labels = [str(level) for level in chosen]
    return Lines("Drafted tokens by load", "requests in flight", "K", [curve], labels, from_zero=True)


def step_times(steps: Sequence[Record]) -> Lines:
    """A curve for each K over the batch sizes, evenly spaced."""
    batches = sorted({int(one) for one in numbers(steps, "batch")})
    curves = []
    drafted = sorted({int(one) for one in numbers(steps, "draft_tokens")})
    for k in [*([None] if any(one.get("draft_tokens") is None for one in steps) else []), *drafted]:
        own = [one for one in steps if one.get("draft_tokens") == k]
        times = {batch: numbers([one for one in own if one.get("batch") == batch], "step_ms") for batch in batches}
        points = [(float(at), sum(found) / len(found)) for at, batch in enumerate(batches) if (found := times[batch])]
        if points:
            curves.append(Line("no draft", points, dash=DASH) if k is None else Line(f"K = {k}", points))
    labels = [str(batch) for batch in batches]
    return Lines("Time of a step", "requests in a step", "ms", curves, labels, from_zero=True)


def _predictions(predicted: Sequence[Record]) -> Lines:
    found: dict[int, list[tuple[float, float]]] = {}
    for one in predicted:
        pair = [numbers([one], f"{kind}_tokens_per_s") for kind in ("measured", "predicted")]
        if all(pair) and numbers([one], "draft_tokens"):
            found.setdefault(int(numbers([one], "draft_tokens")[0]), []).append((pair[0][0], pair[1][0]))
    curves = [Line(f"K = {k}", found[k], marks=True) for k in sorted(found)]
    most = max(max(point) for points in found.values() for point in points) if found else 1.0
    curves.append(Line("as predicted", [(0.0, 0.0), (most, most)], dash=DASH))
    return Lines("Predicted against measured", "measured tokens/s", "predicted tokens/s", curves)


def _table(figures: Mapping[str, float], predicted: Sequence[Record], chosen: Mapping[int, int]) -> Table:
    """A row a load: the K chosen, what it was to yield and yielded, and the schedule beside the best."""
    rows = []
    for level, k in chosen.items():
        own = [one for one in predicted if one.get("concurrency") == level and one.get("draft_tokens") == k]
        rates = [next(iter(numbers(own, f"{kind}_tokens_per_s")), None) for kind in ("predicted", "measured")]
        tuned = figures.get(f"tokens_per_s_tuned_c{level}")
        rows.append(
            [
                str(level),
                str(k),
                *(plain(rate) for rate in (*rates, tuned)),
                _ratio(figures.get(f"tuned_ratio_c{level}")),
                _ratio(figures.get(f"tuned_hindsight_c{level}")),
            ]
        )
    measured = ["measured at this K", "tuned schedule", "over the best other", "in hindsight"]
    return Table(["in flight", "K", "predicted tokens/s", *measured], rows)


def trials(tried: Sequence[Record], chosen: Mapping[int, int]) -> Table:
    """A row a load: tokens per second of each K that was put under it, over its rounds; the chosen one is bold."""
    by_load: dict[int, dict[int, list[Record]]] = {}
    for one in tried:
        (level,), (k,) = numbers([one], "concurrency"), numbers([one], "draft_tokens")
        by_load.setdefault(int(level), {}).setdefault(int(k), []).append(one)
    every = sorted({k for by_k in by_load.values() for k in by_k})
    rows = []
    for level, by_k in sorted(by_load.items()):
        rates = {
            k: plain(sum(numbers(own, "output_tokens")) / sum(numbers(own, "duration_s"))) for k, own in by_k.items()
        }
        cells = [f"**{rates[k]}**" if k == chosen.get(level) and k in rates else rates.get(k, "–") for k in every]
        rows.append([str(level), *cells])
    return Table(["in flight", *(f"K = {k}" for k in every)], rows)


def _ratio(value: float | None) -> str:
    """To three digits: what is asked for is a few per cent."""
    return "–" if value is None else f"{value:.3f}×"


def _sentences(figures: Mapping[str, float], chosen: Mapping[int, int], *, scheduled: bool) -> list[str]:
    said = []
    if "min_ratio_vs_best" in figures:
        first = figures.get("speedup_c1")
        alone = "" if first is None else f" and {first:.2f}× no speculation with one request in flight"
        said.append(
            f"**Tuned speculation yields at least {figures['min_ratio_vs_best']:.3f}× the tokens per second of the "
            "best other "
            f"choice at every load measured**{alone}."
        )
    if chosen:
        (low, first_k), (high, last_k) = next(iter(chosen.items())), list(chosen.items())[-1]
        what = "It drafts" if scheduled else "The prediction favours"
        said.append(f"{what} {first_k or 'no'} tokens at {low} in flight and {last_k or 'none'} at {high}.")
    if "prediction_error_median" in figures:
        error = figures["prediction_error_median"]
        said.append(
            f"The prediction behind it is off by {error:.1%} in the median over loads and numbers of drafted tokens."
        )
    return said
