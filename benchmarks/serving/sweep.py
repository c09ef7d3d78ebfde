# SPDX-License-Identifier: Apache-2.0
"""An interleaved, repeated, resumable sweep: scenarios x temperatures x concurrency x variants.

In each round every variant meets every cell of the sweep on the same prompts, and from round to round the order of
the variants is turned. Each cell has prompts of its own, so that no server finds the last cell's in its prefix cache;
a file of prompts that is too short for that is gone through again from its start (`repeated` in a run counts those).
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.points import Points, Record
from aerie.benchmarks.progress import counted
from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.generator import Generator
from aerie.benchmarks.serving.load import LoadOptions
from aerie.benchmarks.serving.rounds import Loaded, Round, measure_round, warm_up
from aerie.benchmarks.serving.variants import Remote, Variant, running

NAME = "serving"
WARM_UP_TOKENS = 16
DIGEST = 8
"""Hexadecimal digits that stand for a text."""


class SweepOptions(BaseModel):
    """The axes of a sweep that are not its variants and scenarios, and what shapes every request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    """Whose tokenizer counts and whose chat template renders."""
    concurrencies: tuple[int, ...] = Field(min_length=1)
    temperatures: tuple[float, ...] = (0.0,)
    rounds: int = Field(default=3, ge=1)
    first_round: int = Field(default=0, ge=0)
    count: int = Field(default=32, ge=1)
    max_tokens: int = Field(default=256, ge=1)
    warmups: int = Field(default=2, ge=0)
    """Requests before each measurement that do not count."""
    goodput: dict[str, float] = {}
    seed: int = 0

    def size(self, concurrency: int) -> int:
        """Prompts of a cell: enough that most of its time as many are in flight as it says."""
        return max(self.count, 2 * concurrency)

    @property
    def prompts_needed(self) -> int:
        """Prompts of one scenario, so that every cell and the warm-up have their own."""
        cells = sum(self.size(concurrency) for concurrency in self.concurrencies)
        return self.rounds * len(self.temperatures) * cells + max(self.concurrencies)


@dataclass(frozen=True)
class Cell:
    """What all variants are measured at, one after the other."""

    index: int
    """The round."""
    scenario: str
    temperature: float
    concurrency: int


@dataclass(frozen=True)
class Turn:
    """One measurement: a variant at a cell."""

    variant: Variant
    cell: Cell

    @property
    def name(self) -> str:
        """Of its kept point."""
        cell = self.cell
        return f"r{cell.index}-{cell.scenario}-t{cell.temperature:g}-c{cell.concurrency}-{self.variant.name}"


Measure = Callable[[Turn, Sequence[Prompt]], Record]


def in_turn(variants: Sequence[Variant], index: int) -> list[Variant]:
    """The order of the variants in a round: as given, reversed, then the same from the next one on: ABC CBA BCA ACB."""
    first = index // 2 % len(variants)
    turned = [*variants[first:], *variants[:first]]
    return turned if index % 2 == 0 else turned[::-1]


@dataclass(frozen=True)
class Sweep:
    """All that is to be measured; `pools` has each scenario's prompts by its name."""

    variants: Sequence[Variant]
    pools: Mapping[str, Sequence[Prompt]]
    options: SweepOptions
    only: Mapping[int, Collection[str]] | None = None
    """By concurrency the names of the variants that take part; all do without it."""

    @cached_property
    def cells(self) -> list[Cell]:
        """In the order of measuring."""
        chosen = self.options
        return [
            Cell(index, scenario, temperature, concurrency)
            for index in range(chosen.first_round, chosen.first_round + chosen.rounds)
            for scenario in self.pools
            for temperature in chosen.temperatures
            for concurrency in chosen.concurrencies
        ]

    def turns(self) -> Iterator[Turn]:
        """Every measurement, in order."""
        for cell in self.cells:
            here = [one for one in self.variants if self.only is None or one.name in self.only[cell.concurrency]]
            for variant in in_turn(here, cell.index):
                yield Turn(variant, cell)

    def missing(self, points: Points) -> set[str]:
        """The names of the variants that have something left to measure."""
        return {turn.variant.name for turn in self.turns() if points.found(turn.name) is None}

    def span(self, cell: Cell) -> range:
        """The places of a cell's prompts, were the pool endless."""
        before = self.cells[: self.cells.index(cell)]
        first = sum(self.options.size(one.concurrency) for one in before if one.scenario == cell.scenario)
        return range(first, first + self.options.size(cell.concurrency))

    def prompts(self, cell: Cell) -> list[Prompt]:
        """A cell's prompts, the same for all variants."""
        pool = self.pools[cell.scenario]
        return [pool[place % len(pool)] for place in self.span(cell)]

    def repeated(self, cell: Cell) -> int:
        """How many of a cell's prompts were put before."""
        return sum(place >= len(self.pools[cell.scenario]) for place in self.span(cell))

    @property
    def warm_up_prompts(self) -> list[Prompt]:
        """The end of the first pool, which no cell comes to when the pool is long enough."""
        return list(next(iter(self.pools.values())))[-max(self.options.concurrencies) :]

    def points(self, work: Path) -> Points:
        """Where its points are kept: with any change to what shapes one, elsewhere."""
        chosen = self.options
        pools = {name: _digest("\0".join(one.text for one in pool)) for name, pool in self.pools.items()}
        settings: dict[str, JsonValue] = {
            "benchmark": NAME,
            "options": chosen.model_dump(mode="json", exclude={"model"}),
            "variants": [variant.model_dump(mode="json") for variant in self.variants],
            "pools": {**pools},
            "inputs": {**options.inputs(model=chosen.model)},
        }
        return Points(work, settings)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record(turn: Turn, done: Round, repeated: int) -> Record:
    """One run, flat. Of the texts at temperature 0 it keeps digests, so that others can be compared with them."""
    report, cell = done.report, turn.cell
    steps, accepted = report.spec_decode_num_drafts, report.spec_decode_accepted_tokens
    times = report.model_dump(mode="json", include={name for name in type(report).model_fields if name.endswith("_ms")})
    texts = " ".join(_digest(text)[:DIGEST] for text in report.texts)
    return {
        "variant": turn.variant.name,
        "draft_tokens": turn.variant.draft_tokens,
        "scenario": cell.scenario,
        "concurrency": cell.concurrency,
        "temperature": cell.temperature,
        "index": cell.index,
        "requests": report.requests,
        "repeated": repeated,
        "duration_s": report.duration_s,
        "input_tokens": report.input_tokens,
        "output_tokens": report.output_tokens,
        "output_tokens_per_s": report.output_tokens_per_s,
        "requests_per_s": report.requests_per_s,
        "goodput_per_s": report.goodput_per_s,
        **{name: round(value, 3) for name, value in times.items()},
        "acceptance_length": 1 + accepted / steps if steps and accepted is not None else None,
        "acceptance_positions": [*report.spec_decode_positions] if report.spec_decode_positions else None,
        "steps": steps,
        "drafted": report.spec_decode_draft_tokens,
        "accepted": accepted,
        "cores_server": done.cores_server,
        "cores_waiting": done.cores_waiting,
        "cores_others": done.cores_others,
        "client_cpu_s": report.client_cpu_s,
        "texts": texts if cell.temperature == 0 else None,
    }


def measure_missing(plan: Sweep, points: Points, measure: Measure) -> None:
    """Measure every turn that was not kept yet; each is kept as it ends, so an interruption loses one at most."""
    turns = list(plan.turns())
    missing = [turn for turn in turns if points.found(turn.name) is None]
    with counted(len(turns), len(turns) - len(missing)) as count:
        for turn in missing:
            count(turn.name, partial(points.kept, turn.name, partial(_measured, measure, turn, plan)))


def _measured(measure: Measure, turn: Turn, plan: Sweep) -> list[Record]:
    return [measure(turn, plan.prompts(turn.cell))]


def finished(plan: Sweep, points: Points) -> list[Run]:
    """The runs of all turns measured so far, now or earlier, in the sweep's order."""
    kept = (points.found(turn.name) for turn in plan.turns())
    return [Run(benchmark=NAME, measured=one) for records in kept if records is not None for one in records]


class Loads:
    """Measures turns on running servers."""

    def __init__(self, plan: Sweep, servers: Mapping[str, Loaded], work: Path, generator: Generator) -> None:
        self.plan, self.servers, self.work, self.generator = plan, servers, work, generator

    def options(self, server: Loaded, concurrency: int, temperature: float = 0.0) -> LoadOptions:
        """Of the load generator."""
        chosen = self.plan.options
        return LoadOptions(
            tokenizer=chosen.model,
            max_tokens=chosen.max_tokens,
            concurrency=concurrency,
            warmups=chosen.warmups,
            temperature=temperature,
            goodput=chosen.goodput,
            served_model=server.served_model if isinstance(server, Remote) else None,
        )

    def warm_up(self) -> None:
        """As many requests as will ever be in flight at once, to each server."""
        for server in self.servers.values():
            load = self.options(server, max(self.plan.options.concurrencies))
            short = load.model_copy(update={"max_tokens": min(WARM_UP_TOKENS, load.max_tokens)})
            warm_up([server], self.plan.warm_up_prompts, short, self.work, self.generator)

    def __call__(self, turn: Turn, prompts: Sequence[Prompt]) -> Record:
        """Put a cell's prompts to the turn's server."""
        server, cell = self.servers[turn.variant.name], turn.cell
        waiting = [other for name, other in self.servers.items() if name != server.name]
        load = self.options(server, cell.concurrency, cell.temperature)
        done = measure_round(server, waiting, cell.index, prompts, load, self.work / turn.name, self.generator)
        return record(turn, done, self.plan.repeated(cell))


Further = Callable[[Sequence[Run]], Sweep]


def sweep(plan: Sweep, points: Points, further: Further | None = None) -> list[Run]:
    """Start the servers that still have something to measure, measure it, and give back all runs.

    `further` makes, of the sweep's runs, a second one of the same servers. Logs go beside the points
    (`plan.points(WORK)`). After Ctrl-C or an error `finished_so_far` gives what was measured, and the same call goes on
    from there.
    """
    wanted = _wanted(plan, points, further)
    if wanted:
        logs = points.folder / "logs"
        with running(wanted, logs) as servers, Generator() as generator:
            loads = Loads(plan, servers, logs, generator)
            loads.warm_up()
            measure_missing(plan, points, loads)
            if further is not None:
                second = further(finished(plan, points))
                measure_missing(second, points, Loads(second, servers, logs, generator))
    return finished_so_far(plan, points, further)


def _wanted(plan: Sweep, points: Points, further: Further | None) -> list[Variant]:
    missing = plan.missing(points)
    if further is not None:
        # Who is in the second sweep is not known before the first one ends.
        last = further(finished(plan, points)).missing(points) if not missing else {one.name for one in plan.variants}
        missing = missing | last
    return [variant for variant in plan.variants if variant.name in missing]


def finished_so_far(plan: Sweep, points: Points, further: Further | None = None) -> list[Run]:
    """The runs of all turns measured so far, of a second sweep too where the first one is whole."""
    runs = finished(plan, points)
    if further is not None and not plan.missing(points):
        runs += finished(further(runs), points)
    return runs
