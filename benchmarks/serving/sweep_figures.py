# SPDX-License-Identifier: Apache-2.0
"""From the runs of a sweep to figures: rates, speed-ups over `none` and their spread, the same texts, the crossover."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aerie.benchmarks.points import Record, number
from aerie.benchmarks.report.cells import crossover
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.variants import BASELINE

Key = tuple[str, float]
"""A scenario and a temperature."""


@dataclass(frozen=True)
class Place:
    """What a variant did at one concurrency, of one scenario and temperature, as a table and the figures name it."""

    title: str
    concurrency: int
    suffix: str


def figures(runs: Sequence[Run]) -> dict[str, float]:
    """For every variant and concurrency of every scenario and temperature; docs/benchmarks.md defines them.

    The first scenario and the first temperature have the plain names, others theirs before the concurrency.
    """
    records = [run.measured for run in runs if run.benchmark == "serving"]
    found: dict[str, float] = {}
    for key in dict.fromkeys(_key(record) for record in records):
        here = [record for record in records if _key(record) == key]
        middle = _middle(key, records)
        variants = list(dict.fromkeys(str(record["variant"]) for record in here))
        for variant in sorted(variants, key=lambda name: name != BASELINE):
            found |= _of_variant(here, variant, middle)
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def places(runs: Sequence[Run]) -> list[Place]:
    """All that have figures, by scenario and temperature, then by concurrency, then by variant."""
    records = [run.measured for run in runs]
    found = {}
    for record in sorted(records, key=lambda one: (*_key(one), number(one, "concurrency"))):
        variant, concurrency, middle = (
            str(record["variant"]),
            int(number(record, "concurrency")),
            _middle(_key(record), records),
        )
        suffix = f"{_word(variant)}{middle}_c{concurrency}"
        found[suffix] = Place(variant + middle.replace("_", " "), concurrency, suffix)
    return list(found.values())


def _key(record: Record) -> Key:
    return str(record["scenario"]), number(record, "temperature")


def _middle(key: Key, records: Sequence[Record]) -> str:
    """What stands between a variant and the concurrency in the names of figures."""
    first = _key(records[0])
    scenario = "" if key[0] == first[0] else f"_{_word(key[0])}"
    temperature = "" if key[1] == first[1] else f"_t{key[1]:g}".replace(".", "_")
    return scenario + temperature


def _word(name: str) -> str:
    return name.replace("-", "_")


def _of_variant(here: Sequence[Record], variant: str, middle: str) -> dict[str, float]:
    found: dict[str, float] = {}
    speedups: dict[int, float] = {}
    name = _word(variant) + middle
    for concurrency in sorted({int(number(record, "concurrency")) for record in here}):
        mine, base = (_rounds(here, one, concurrency) for one in (variant, BASELINE))
        if not mine:
            continue
        cell = f"{name}_c{concurrency}"
        found |= {f"{what}_{cell}": value for what, value in _alone(list(mine.values())).items()}
        shared = [(mine[index], base[index]) for index in mine if index in base]
        if variant != BASELINE and shared:
            compared = _compared(shared)
            speedups[concurrency] = compared["speedup"]
            spread = compared.pop("std", None)
            found |= {f"{what}_{cell}": value for what, value in compared.items()}
            if spread is not None:
                found[f"speedup_{cell}_std"] = spread
    last = crossing(speedups)
    return found if last is None else found | {f"crossover_{name}": last}


def _rounds(here: Sequence[Record], variant: str, concurrency: int) -> dict[int, Record]:
    """A variant's runs at a concurrency, by round."""
    return {
        int(number(one, "index")): one
        for one in here
        if one["variant"] == variant and one["concurrency"] == concurrency
    }


def pooled_rate(rounds: Sequence[Record]) -> float:
    """Output tokens per second over all rounds."""
    return sum(number(one, "output_tokens") for one in rounds) / sum(number(one, "duration_s") for one in rounds)


def _alone(rounds: Sequence[Record]) -> dict[str, float]:
    """What a variant's rounds at one concurrency tell without any other's."""
    found = {
        "tokens_per_s": pooled_rate(rounds),
        "ttft_ms": statistics.median(number(one, "median_ttft_ms") for one in rounds),
        "tpot_ms": statistics.median(number(one, "median_tpot_ms") for one in rounds),
    }
    drafting = [one for one in rounds if one["steps"]]
    if drafting:
        accepted = sum(number(one, "accepted") for one in drafting)
        found["acceptance_length"] = 1 + accepted / sum(number(one, "steps") for one in drafting)
    judged = [one for one in rounds if one["goodput_per_s"] is not None]
    if judged:
        good = sum(number(one, "goodput_per_s") * number(one, "duration_s") for one in judged)
        found["goodput_per_s"] = good / sum(number(one, "duration_s") for one in judged)
    return found


def _compared(shared: Sequence[tuple[Record, Record]]) -> dict[str, float]:
    """A variant beside the baseline, over the rounds that both did."""
    ratios = [number(one, "output_tokens_per_s") / number(base, "output_tokens_per_s") for one, base in shared]
    mine, base = (pooled_rate(side) for side in zip(*shared, strict=True))
    found = {"speedup": mine / base}
    if len(ratios) > 1:
        found["std"] = statistics.stdev(ratios)
    both = [(str(one["texts"]).split(), str(base["texts"]).split()) for one, base in shared if one["texts"]]
    texts = [pair for side in both for pair in zip(*side, strict=True)]
    if texts:
        found["identical"] = sum(a == b for a, b in texts) / len(texts)
    return found


def crossing(speedups: Mapping[int, float]) -> int | None:
    """The largest concurrency up to which the speed-up stays >= 1, 0 without one; `None` if it never falls below."""
    crossed = crossover(speedups)
    return None if crossed is None else crossed[0]
