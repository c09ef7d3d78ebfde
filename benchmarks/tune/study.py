# SPDX-License-Identifier: Apache-2.0
"""The measurements before the proof: two servers, every point kept, and what comes of them."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from aerie.benchmarks.points import Points, Record, number
from aerie.benchmarks.progress import counted
from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.generator import Generator
from aerie.benchmarks.serving.variants import BASELINE, Variant, running
from aerie.benchmarks.tune import switch, trial
from aerie.benchmarks.tune.measure import Bench, measure_acceptance, measure_entry, measure_load, measure_steps
from aerie.benchmarks.tune.model import Costs

SWITCHED = "switched"
ENTRY_LEVELS = (1, 8)
ENTRY_REQUESTS = 12


class StudyOptions(BaseModel):
    """The size of the study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    batches: tuple[int, ...]
    most: int
    """The largest K."""
    rounds: int
    acceptance_count: int
    max_tokens: int
    trial_rounds: int
    sizes: dict[int, int]
    """Requests of a trial, by concurrency."""

    @property
    def prompts_needed(self) -> int:
        """So that no measurement finds its prompts in the prefix cache; those of K and K' do, of one batch alike."""
        return self._prompts_before_trials + self.trial_rounds * sum(self.sizes.values())

    @property
    def _prompts_before_trials(self) -> int:
        entries = self.rounds * len(ENTRY_LEVELS) * ENTRY_REQUESTS
        return self.acceptance_count + max(self.batches) + entries

    def trial_prompts(self, prompts: Sequence[Prompt], concurrency: int, index: int) -> Sequence[Prompt]:
        """Those of one load in one round; every K has the same."""
        before = sum(size for level, size in self.sizes.items() if level < concurrency)
        first = self._prompts_before_trials + index * sum(self.sizes.values()) + before
        return prompts[first : first + self.sizes[concurrency]]


@dataclass(frozen=True)
class Task:
    """One point that is still to be measured or kept already."""

    name: str
    server: str
    measure: Callable[[Bench], Record]


def tasks(options: StudyOptions, prompts: Sequence[Prompt]) -> Iterator[Task]:
    """All points: acceptance, then round after round every batch with every K, forwards and backwards in turn."""
    held = list(prompts)
    accept, rest = held[: options.acceptance_count], held[options.acceptance_count :]
    steps, entries = rest[: max(options.batches)], rest[max(options.batches) :]
    level = min(8, max(options.batches))
    measure = partial(_acceptance, accept, options.most, level, options.max_tokens)
    yield Task("acceptance", SWITCHED, measure)
    for index in range(options.rounds):
        for place, concurrency in enumerate(ENTRY_LEVELS):
            first = (index * len(ENTRY_LEVELS) + place) * ENTRY_REQUESTS
            mine = entries[first : first + ENTRY_REQUESTS]
            yield Task(f"entry-{index}-c{concurrency}", SWITCHED, partial(_entry, mine, concurrency, index))
        every: list[int | None] = [None, *range(options.most + 1)]
        for batch in options.batches:
            for k in every if index % 2 == 0 else every[::-1]:
                server = BASELINE if k is None else SWITCHED
                name = f"steps-{index}-b{batch}-{'plain' if k is None else k}"
                yield Task(name, server, partial(_steps, steps[:batch], k, index))


def trials(options: StudyOptions, prompts: Sequence[Prompt], points: Points) -> Iterator[Task]:
    """The Ks under load, once all points of `tasks` are kept; each must be kept before the next one is asked for."""
    for one in trial.tries(_predicted(options, prompts, points), options.trial_rounds, points):
        mine = options.trial_prompts(prompts, one.concurrency, one.index)
        yield Task(one.name, SWITCHED, partial(_trial, mine, one, options.max_tokens))


def _predicted(options: StudyOptions, prompts: Sequence[Prompt], points: Points) -> trial.ByLevel:
    studied = _kept(tasks(options, prompts), points)
    return trial.predicted(costs_of(studied)[0], acceptance_of(studied), options.sizes)


def _acceptance(prompts: Sequence[Prompt], most: int, concurrency: int, max_tokens: int, bench: Bench) -> Record:
    return measure_acceptance(bench, prompts, most, concurrency, max_tokens)


def _entry(prompts: Sequence[Prompt], concurrency: int, index: int, bench: Bench) -> Record:
    return measure_entry(bench, prompts, concurrency, index)


def _steps(prompts: Sequence[Prompt], draft_tokens: int | None, index: int, bench: Bench) -> Record:
    return measure_steps(bench, prompts, draft_tokens, index)


def _trial(prompts: Sequence[Prompt], one: trial.Try, max_tokens: int, bench: Bench) -> Record:
    measured = measure_load(bench, one.name, prompts, one.draft_tokens, one.concurrency, max_tokens)
    return measured | {"index": one.index}


def switched_variant(arguments: Sequence[str], tuning: Path, *, asynchronous: bool) -> tuple[str, ...]:
    """Arguments of the server whose K is switched; `tuning` is a file with any schedule of the largest K."""
    options = f'{{"scheduler-cls": "{switch.scheduler_class(asynchronous=asynchronous)}"}}'
    return (*arguments, "--speculation", str(tuning), "--engine-options", options)


def measure(
    options: StudyOptions, points: Points, prompts: Sequence[Prompt], servers: Sequence[Variant], environment: Path
) -> list[Run]:
    """Measure what was not kept yet. `environment` is the file of K; raises what the load generator raises."""
    plan = partial(_whole, options, prompts, points)
    if any(points.found(task.name) is None for task in plan()):
        environment.parent.mkdir(parents=True, exist_ok=True)
        environment.write_text("0")
        logs = points.folder / "logs"
        with running(servers, logs, {switch.VARIABLE: str(environment)}) as up, Generator() as generator:
            benches = {
                name: Bench(server.url, options.model, generator, logs, environment if name == SWITCHED else None)
                for name, server in up.items()
            }
            for bench in benches.values():
                bench.draft(options.most)
                bench.put("warm-up", prompts[: max(options.batches)], max(options.batches), 16, ignore_eos=True)
            todo = list(tasks(options, prompts))
            _run(todo, len(todo), points, benches)
            tries = trial.count(_predicted(options, prompts, points), options.trial_rounds)
            _run(trials(options, prompts, points), tries, points, benches)
    return _kept(plan(), points)


def _whole(options: StudyOptions, prompts: Sequence[Prompt], points: Points) -> Iterator[Task]:
    yield from tasks(options, prompts)
    yield from trials(options, prompts, points)


def _kept(done: Iterable[Task], points: Points) -> list[Run]:
    return [Run(benchmark=f"tune.{_kind(task.name)}", measured=(points.found(task.name) or [])[0]) for task in done]


def _run(todo: Iterable[Task], total: int, points: Points, benches: dict[str, Bench]) -> None:
    left, done = iter(todo), 0
    for first in left:
        if points.found(first.name) is None:
            break
        done += 1
    else:
        return
    with counted(total, done) as count:
        for task in itertools.chain([first], left):
            count(f"{task.name:20}", partial(points.kept, task.name, partial(_measured, task, benches[task.server])))


def _measured(task: Task, bench: Bench) -> list[Record]:
    return [task.measure(bench)]


def _kind(name: str) -> str:
    return {"acceptance": "acceptance", "entry": "entry", "steps": "step", "trial": "trial"}[name.split("-")[0]]


def costs_of(runs: Sequence[Run]) -> tuple[Costs, float]:
    """Mean step times over rounds, and their relative spread: the median over points of the standard deviation."""
    times: dict[tuple[int | None, int], list[float]] = {}
    entry: dict[int, list[float]] = {}
    for run in runs:
        one = run.measured
        if run.benchmark == "tune.step":
            k = None if one["draft_tokens"] is None else int(number(one, "draft_tokens"))
            times.setdefault((k, int(number(one, "batch"))), []).append(number(one, "step_ms"))
        elif run.benchmark == "tune.entry":
            entry.setdefault(int(number(one, "concurrency")), []).append(number(one, "request_ms"))
    mean = {key: statistics.fmean(values) for key, values in times.items()}
    spread = [statistics.stdev(values) / mean[key] for key, values in times.items() if len(values) > 1]
    step: dict[int, dict[int, float]] = {}
    for (k, batch), value in mean.items():
        if k is not None:
            step.setdefault(k, {})[batch] = value
    plain = {batch: value for (k, batch), value in mean.items() if k is None}
    costs = Costs(step=step, plain=plain, entry={level: statistics.fmean(values) for level, values in entry.items()})
    return costs, statistics.median(spread) if spread else 0.0


def acceptance_of(runs: Sequence[Run]) -> dict[str, JsonValue]:
    """The record of acceptance."""
    return next(run.measured for run in runs if run.benchmark == "tune.acceptance")
