# SPDX-License-Identifier: Apache-2.0
"""Servers under load: the frontier of throughput against latency, and the speed-up against concurrency."""

from collections.abc import Mapping, Sequence

from aerie.benchmarks.report.cells import NONE, Cell, Load, cells, crossover, numbers, slug, speedup, suffix
from aerie.benchmarks.report.document import Block, Folded, Paragraph, Picture, Table
from aerie.benchmarks.report.sections.findings import Findings, plain, pm, ratio
from aerie.benchmarks.results_file import ResultFile
from aerie.chart import Line, Lines

DASH = "6 4"
OTHERS_BUSY = 0.2
"""Cores kept busy by other programs, above which a remark is due."""
Gains = dict[str, dict[int, tuple[float, float | None]]]


def findings(result: ResultFile) -> Findings | None:
    """What the runs named `serving` come to; None where there are none."""
    measured = cells(result)
    if not measured:
        return None
    loads = list(dict.fromkeys(one.load for one in measured))
    blocks: list[Block] = []
    for load in loads:
        here = [one for one in measured if one.load == load]
        named = "" if len(loads) == 1 else _named(load)
        if named:
            blocks.append(Paragraph(f"**{named}**"))
        blocks += _of_load(result, here, suffix(load, loads), named)
    first = [one for one in measured if one.load == loads[0]]
    return Findings(_sentences(first), blocks, _remarks(result, measured))


def _named(load: Load) -> str:
    return f"{load.scenario or 'requests'}, temperature {load.temperature:g}"


def _of_load(result: ResultFile, here: Sequence[Cell], end: str, named: str) -> list[Block]:
    gains = all_gains(here)
    name = f"serving{end}".replace("_", "-")
    blocks: list[Block] = [
        Picture(
            f"{name}-frontier",
            "Throughput against latency: a point for each number of requests in flight, the last of them named. "
            "Higher and "
            "further left is better.",
            [frontier(here, named)],
        )
    ]
    if any(gains.values()):
        alt = "Speed-up over no speculation against the number of requests in flight; bars are the spread over rounds."
        blocks.append(Picture(f"{name}-speedup", alt, [speedups(here, gains, named)]))
        blocks.append(matrix(here, gains))
    if drawn := positions(here, named):
        alt = "Acceptance by position while serving, with the fewest requests in flight: the share of steps."
        blocks.append(Picture(f"{name}-positions", alt, [drawn]))
    blocks.append(Folded(f"All cells{f': {named}' if named else ''}", [_cells(result, here, gains, end)]))
    return blocks


def all_gains(here: Sequence[Cell]) -> Gains:
    """Speed-up and spread over `none`, by variant and concurrency; of variants other than `none`."""
    plain_cells = {one.concurrency: one for one in here if one.variant == NONE}
    found: Gains = {}
    for one in here:
        base = plain_cells.get(one.concurrency)
        gain = speedup(one, base) if base is not None and one.variant != NONE else None
        if gain is not None:
            found.setdefault(one.variant, {})[one.concurrency] = gain
    return found


def variants(here: Sequence[Cell]) -> list[str]:
    """Their names; `none` first."""
    return sorted(dict.fromkeys(one.variant for one in here), key=lambda name: name != NONE)


def frontier(here: Sequence[Cell], named: str = "") -> Lines:
    """A curve a variant, a point a concurrency: median time per output token across, output tokens per second up."""
    curves = []
    for variant in variants(here):
        own = sorted((one for one in here if one.variant == variant), key=lambda one: one.concurrency)
        points = [(one, at) for one in own if (at := one.median("median_tpot_ms")) is not None]
        notes = ["" for _ in points[:-1]] + [str(one.concurrency) for one, _ in points[-1:]]
        dash = DASH if variant == NONE else ""
        curves.append(Line(variant, [(at, one.rate) for one, at in points], notes=notes, dash=dash))
    title = f"Throughput against latency{f': {named}' if named else ''}"
    across = "median time per output token, ms (logarithmic)"
    return Lines(title, across, "output tokens/s", curves, from_zero=True, logarithmic=True)


def speedups(here: Sequence[Cell], gains: Gains, named: str = "") -> Lines:
    """A curve a variant over the concurrencies, evenly spaced, with the best variant's crossover marked."""
    levels = sorted({one.concurrency for one in here})
    places = {level: float(index) for index, level in enumerate(levels)}
    curves = [Line(NONE, [(places[level], 1.0) for level in levels], dash=DASH)]
    for variant, found in gains.items():
        points = [(places[level], found[level][0]) for level in sorted(found)]
        curves.append(Line(variant, points, spread=[found[level][1] or 0.0 for level in sorted(found)]))
    crossed = crossover({level: gain for level, (gain, _) in gains[lasting(gains)].items()})
    rules = []
    if crossed is not None and crossed[0]:
        between = (places[crossed[0]] + places[crossed[1]]) / 2
        rules.append((between, f"{lasting(gains)} crosses"))
    title = f"Speed-up over no speculation{f': {named}' if named else ''}"
    return Lines(title, "requests in flight", "times none", curves, [str(level) for level in levels], rules)


def positions(here: Sequence[Cell], named: str = "") -> Lines | None:
    """A curve a variant that drafts, at the fewest requests in flight; None where no server told."""
    fewest = min(one.concurrency for one in here)
    curves = []
    for one in here:
        points = [(float(at), share) for at, share in enumerate(one.positions)]
        if one.concurrency == fewest and points:
            curves.append(Line(one.variant, points, notes=[""] * len(points)))
    if not curves:
        return None
    labels = [str(at + 1) for at in range(max(len(line.points) for line in curves))]
    title = f"Acceptance by position{f': {named}' if named else ''}"
    return Lines(title, "position in the draft", "share of steps", curves, labels, from_zero=True)


def lasting(gains: Gains) -> str:
    """The variant that pays up to the most requests in flight; the faster on average among those."""

    def reach(name: str) -> tuple[float, float]:
        values = {level: gain for level, (gain, _) in gains[name].items()}
        crossed = crossover(values)
        return float("inf") if crossed is None else crossed[0], sum(values.values()) / len(values)

    return max((name for name in gains if gains[name]), key=reach)


def matrix(here: Sequence[Cell], gains: Gains) -> Table:
    """Speed-ups: a row a variant, a column a concurrency."""
    levels = sorted({one.concurrency for one in here})
    rows = [
        [f"`{name}`", *(ratio(*found[level]) if level in found else "–" for level in levels)]
        for name, found in gains.items()
    ]
    return Table(["requests in flight", *(str(level) for level in levels)], rows)


def _cells(result: ResultFile, here: Sequence[Cell], gains: Gains, end: str) -> Table:
    """Every cell, with its spread over rounds."""
    head = [
        "variant", "in flight", "rounds", "tokens/s", "speed-up", "first token, ms", "p99", "per token, ms", "p99",
        "goodput, requests/s", "acceptance length", "same texts",
    ]  # fmt: skip
    rows = []
    for one in sorted(here, key=lambda one: (one.variant != NONE, variants(here).index(one.variant), one.concurrency)):
        same = result.figures.get(f"identical_{slug(one.variant)}{end}_c{one.concurrency}")
        gain = gains.get(one.variant, {}).get(one.concurrency)
        length = one.acceptance_length
        rows.append(
            [
                f"`{one.variant}`", str(one.concurrency), str(len(one.rounds)),
                pm(one.rate, one.spread("output_tokens_per_s"), 1), ratio(*gain) if gain else "–",
                *(plain(one.median(f"{which}_{what}_ms")) for what in ("ttft", "tpot") for which in ("median", "p99")),
                plain(one.median("goodput_per_s")), "–" if length is None else f"{length:.2f}",
                "–" if same is None else f"{same:.0%}",
            ]
        )  # fmt: skip
    return Table(head, rows)


def _sentences(here: Sequence[Cell]) -> list[str]:
    gains = {name: found for name, found in all_gains(here).items() if found}
    levels = sorted({one.concurrency for one in here})
    if not gains:
        best = max(here, key=lambda one: one.rate)
        return [f"`{best.variant}` yields {best.rate:.0f} output tokens per second at {best.concurrency} in flight."]
    low, high = levels[0], levels[-1]
    at_low = {name: found[low] for name, found in gains.items() if low in found}
    said = []
    if at_low:
        name = max(at_low, key=lambda one: at_low[one][0])
        said.append(
            f"**With {_requests(low)} in flight, `{name}` yields {ratio(*at_low[name])} the output tokens per second "
            "of "
            "no speculation.**"
        )
    return [*said, _lasts(gains, high), *_most(gains, high)]


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _lasts(gains: Gains, high: int) -> str:
    name = lasting(gains)
    crossed = crossover({level: gain for level, (gain, _) in gains[name].items()})
    if crossed is None:
        return f"Speculation pays at every load measured, up to {_requests(high)} in flight (`{name}`)."
    if not crossed[0]:
        return f"Speculation is slower than none at {_requests(crossed[1])} in flight already, with every variant."
    return (
        f"Speculation pays up to {_requests(crossed[0])} in flight (`{name}`); at {crossed[1]} it is slower than none."
    )


def _most(gains: Gains, high: int) -> list[str]:
    """What the busiest load makes of the variants."""
    at_high = {name: found[high] for name, found in gains.items() if high in found}
    if not at_high:
        return []
    best, worst = (pick(at_high, key=lambda one: at_high[one][0]) for pick in (max, min))
    if best == worst:
        return [f"At {_requests(high)} in flight it yields {ratio(*at_high[best])} (`{best}`)."]
    return [
        f"At {_requests(high)} in flight the variants lie between {ratio(*at_high[worst])} (`{worst}`) and "
        f"{ratio(*at_high[best])} (`{best}`)."
    ]


def _remarks(result: ResultFile, measured: Sequence[Cell]) -> list[str]:
    remarks = ["± is the sample standard deviation over rounds; rates are pooled over rounds, latencies their medians."]
    rounds = [len(one.rounds) for one in measured]
    if min(rounds) < 3:
        few = sum(count < 3 for count in rounds)
        remarks.append(
            f"{few} of {len(rounds)} cells have fewer than three rounds: their spread says little or nothing."
        )
    remarks += _missing(measured)
    busy = [one for cell in measured for one in numbers(cell.rounds, "cores_others")]
    if busy and max(busy) > OTHERS_BUSY:
        remarks.append(
            f"Other programs kept up to {max(busy):.2f} cores busy during a round "
            f"({sum(one > OTHERS_BUSY for one in busy)} "
            f"of {len(busy)} rounds above {OTHERS_BUSY}): those rounds are disturbed."
        )
    if not any(one.variant == NONE for one in measured):
        remarks.append(f"No variant is named `{NONE}`: there is no speed-up without a baseline.")
    different = _different(result.figures)
    if different:
        remarks.append(
            f"Texts differ from those of no speculation in {different} cells at temperature 0: how requests meet in "
            "batches "
            "depends on timing, and with it the rounding of near-ties."
        )
    return remarks


def _missing(measured: Sequence[Cell]) -> list[str]:
    """Cells that other variants or loads have and one lacks."""
    have = {(one.variant, one.load, one.concurrency) for one in measured}
    names, loads, levels = ({key[at] for key in have} for at in range(3))
    absent = len(names) * len(loads) * len(levels) - len(have)
    return [f"{absent} cells were not measured: no point of theirs is drawn."] if absent else []


def _different(figures: Mapping[str, float]) -> int:
    return sum(value < 1 for name, value in figures.items() if name.startswith("identical_") and "_t1" not in name)
