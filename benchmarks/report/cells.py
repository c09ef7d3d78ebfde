# SPDX-License-Identifier: Apache-2.0
"""Runs of serving benchmarks, put together: a cell is one variant under one load, with all of its rounds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aerie.benchmarks.points import Record
from aerie.benchmarks.results_file import ResultFile

NONE = "none"
"""The variant without speculation, against which all others are set."""


@dataclass(frozen=True, order=True)
class Load:
    """What is asked of a server."""

    scenario: str
    temperature: float


def numbers(records: Iterable[Record], name: str) -> list[float]:
    """A field of some records, where it is a number."""
    found = (record.get(name) for record in records)
    return [float(one) for one in found if isinstance(one, int | float) and not isinstance(one, bool)]


@dataclass(frozen=True)
class Cell:
    """One variant at one concurrency."""

    variant: str
    load: Load
    concurrency: int
    rounds: Sequence[Record]

    @property
    def rate(self) -> float:
        """Output tokens per second, pooled over rounds."""
        return sum(numbers(self.rounds, "output_tokens")) / sum(numbers(self.rounds, "duration_s"))

    def median(self, name: str) -> float | None:
        """A field's median over rounds; None where no round has it."""
        found = numbers(self.rounds, name)
        return statistics.median(found) if found else None

    def spread(self, name: str) -> float | None:
        """Its sample standard deviation over rounds; None with fewer than two."""
        found = numbers(self.rounds, name)
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def acceptance_length(self) -> float | None:
        """1 + accepted / steps over all rounds; None without speculation."""
        steps = sum(numbers(self.rounds, "steps"))
        return 1 + sum(numbers(self.rounds, "accepted")) / steps if steps else self.median("acceptance_length")

    @property
    def positions(self) -> list[float]:
        """Share of steps that accepted each position, every step weighing the same; empty without speculation."""
        known = [(one["acceptance_positions"], numbers([one], "steps") or [1.0]) for one in self.rounds
                 if isinstance(one.get("acceptance_positions"), list)]  # fmt: skip
        rows = [([float(share) for share in shares if isinstance(share, int | float)], steps[0])
                for shares, steps in known if isinstance(shares, list)]  # fmt: skip
        if not rows or len({len(row) for row, _ in rows}) != 1:
            return []
        whole = sum(steps for _, steps in rows) or 1.0
        return [sum(row[at] * steps for row, steps in rows) / whole for at in range(len(rows[0][0]))]


def cells(result: ResultFile, benchmark: str = "serving") -> list[Cell]:
    """The cells of a result's runs, in the order of the runs."""
    found: dict[tuple[str, Load, int], list[Record]] = {}
    for run in result.runs:
        one = run.measured
        if run.benchmark != benchmark or not numbers([one], "concurrency") or not numbers([one], "duration_s"):
            continue
        load = Load(str(one.get("scenario", "")), (numbers([one], "temperature") or [0.0])[0])
        name = str(one.get("variant") or one.get("server"))
        found.setdefault((name, load, int(numbers([one], "concurrency")[0])), []).append(one)
    return [Cell(variant, load, concurrency, rounds) for (variant, load, concurrency), rounds in found.items()]


def speedup(cell: Cell, plain: Cell) -> tuple[float, float | None] | None:
    """The ratio of the pooled rates over the rounds that both did, and its standard deviation over these rounds.

    None where they share none.
    """
    first, second = ({_index(one, at): one for at, one in enumerate(side.rounds)} for side in (cell, plain))
    shared = [(first[index], second[index]) for index in first if index in second]
    if not shared:
        return None
    rates = [Cell(cell.variant, cell.load, cell.concurrency, side).rate for side in zip(*shared, strict=True)]
    pairs = [numbers(pair, "output_tokens_per_s") for pair in shared]
    ratios = [pair[0] / pair[1] for pair in pairs if len(pair) == 2]
    return rates[0] / rates[1], statistics.stdev(ratios) if len(ratios) > 1 else None


def _index(record: Record, at: int) -> int:
    return int((numbers([record], "index") or [at])[0])


def crossover(speedups: Mapping[int, float]) -> tuple[int, int] | None:
    """Between which two concurrencies, of those measured, a variant begins to be slower than none.

    The first is 0 when it is slower at all of them; None when it never is.
    """
    held = 0
    for concurrency in sorted(speedups):
        if speedups[concurrency] < 1:
            return held, concurrency
        held = concurrency
    return None


def spreads(result: ResultFile) -> dict[str, float]:
    """The spread over rounds of figures that have no `_std` beside them, by the figures' names."""
    fields = {
        "tokens_per_s": "output_tokens_per_s", "output_tokens_per_s": "output_tokens_per_s",
        "ttft_ms": "median_ttft_ms", "tpot_ms": "median_tpot_ms", "acceptance_length": "acceptance_length",
    }  # fmt: skip
    found: dict[str, float] = {}
    for benchmark in {run.benchmark for run in result.runs}:
        measured = cells(result, benchmark)
        loads = list(dict.fromkeys(one.load for one in measured))
        for one in measured:
            for figure, field in fields.items():
                name = f"{figure}_{slug(one.variant)}{suffix(one.load, loads)}_c{one.concurrency}"
                spread = one.spread(field)
                if name in result.figures and spread is not None:
                    found[name] = spread
    return found


def slug(name: str) -> str:
    """A variant or scenario within a figure's name."""
    return name.replace("-", "_")


def suffix(load: Load, loads: Sequence[Load]) -> str:
    """What a figure's name says of its load: nothing of the first scenario and the first temperature."""
    scenario = "" if load.scenario == loads[0].scenario else f"_{slug(load.scenario)}"
    temperature = "" if load.temperature == loads[0].temperature else f"_t{load.temperature:g}".replace(".", "_")
    return scenario + temperature
