# SPDX-License-Identifier: Apache-2.0
"""`aerie tune`: study, schedule, tuning file, proof, result. docs/operations.md tells how to use it.

Every point is kept below `work` when it is measured; after Ctrl-C the same command goes on from there.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import typer
from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.points import Points, Record
from aerie.benchmarks.prompts import Messages, Prompt, PromptsError, held_out, read_messages, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.serving.serve_options import CommandLine
from aerie.benchmarks.serving.sweep import Sweep, SweepOptions, finished_so_far, sweep
from aerie.benchmarks.serving.variants import BASELINE, Variant
from aerie.benchmarks.tune import prove, study, trial
from aerie.benchmarks.tune.model import LAST, Costs, rates, scheduled
from aerie.benchmarks.tune.model import schedule as best_schedule
from aerie.benchmarks.tune.study import SWITCHED, StudyOptions
from aerie.benchmarks.tune.watch import TuneError
from aerie.server.errors import BadOption
from aerie.server.plan import Plan
from aerie.server.settings import flag
from aerie.server.tuning import Predicted, Range, Setup, Tuning, default_path, describe

LEAST_TOLERANCE, MOST_TOLERANCE = 0.01, 0.03
TURN_SECONDS = 2.0
"""Of one turn of the proof, beside its load."""
INTERRUPTED = 130
DECIDED = {"model", "draft", "speculation", "draft_tokens", "engine_options"}
"""Options of the servers that tuning sets itself."""
ENVIRONMENT = ("OMP_NUM_THREADS", "VLLM_", "AERIE_INT4", "AERIE_DRAFT")
"""Variables that change step times."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    model: Path
    draft: Path
    most: int
    concurrencies: tuple[int, ...]
    rounds: int
    count: int
    max_tokens: int
    finals: int
    study_rounds: int
    trial_rounds: int
    acceptance_count: int
    prompts: Path | None
    serve_options: tuple[str, ...]
    proves: bool
    work: Path
    seed: int

    @property
    def study(self) -> StudyOptions:
        """Of the first part."""
        return StudyOptions(
            model=self.model,
            batches=self.concurrencies,
            most=self.most,
            rounds=self.study_rounds,
            acceptance_count=self.acceptance_count,
            max_tokens=self.max_tokens,
            trial_rounds=self.trial_rounds,
            sizes={concurrency: self.proof.size(concurrency) for concurrency in self.concurrencies},
        )

    @property
    def final(self) -> SweepOptions:
        """Of the rounds after the proof's, for the finalists."""
        return self.proof.model_copy(update={"rounds": self.finals})

    @property
    def proof_prompts_needed(self) -> int:
        """Of both."""
        return self.proof.prompts_needed + (self.final.prompts_needed if self.finals else 0)

    @property
    def proof(self) -> SweepOptions:
        """Of the second part."""
        return SweepOptions(
            model=self.model,
            concurrencies=self.concurrencies,
            rounds=self.rounds,
            count=self.count,
            max_tokens=self.max_tokens,
            warmups=0,
            seed=self.seed,
        )

    @property
    def serving(self) -> tuple[str, ...]:
        """Arguments of every server; the draft's and K apart."""
        return ("--model", str(self.model), *self.serve_options)

    @property
    def drafting(self) -> tuple[str, ...]:
        """Arguments that name the draft."""
        return ("--draft", str(self.draft))


def plan_of(chosen: Options) -> Plan:
    """What `aerie serve` would make of the options.

    Raises:
        TuneError: an option of --serve-option that tuning decides.
        BadOption: one that cannot be served.
    """
    try:
        read = CommandLine.read(chosen.serve_options)
    except BadOption as error:
        raise BadOption("--serve-option", f"{error.option}: {error.problem}", error.fix) from error
    for field in DECIDED & set(read.typed):
        raise TuneError(f"--serve-option {flag(field)}: tuning sets it itself; leave it out")
    return read.plan(model=str(chosen.model), draft=str(chosen.draft), speculation="fixed")


def run(chosen: Options, tuning_path: Path | None, out: Path) -> int:
    """Tune, and prove it unless told not to; returns the exit status."""
    plan = plan_of(chosen)
    setup = plan.setup
    where = tuning_path or default_path(setup)
    needed = chosen.study.prompts_needed + (chosen.proof_prompts_needed if chosen.proves else 0)
    prompts = render(chosen.model, chats_of(chosen, needed))
    held, rest = prompts[: chosen.study.prompts_needed], prompts[chosen.study.prompts_needed :]
    hashes = options.inputs(model=chosen.model, draft=chosen.draft, prompts=chosen.prompts)
    typer.echo("step times and acceptance: two servers")
    studied = studied_runs(chosen, plan, setup, held, hashes)
    costs, spread = study.costs_of(studied)
    acceptance = study.acceptance_of(studied)
    schedule = schedule_of(chosen, studied)
    predicted = predictions_of(chosen, studied, schedule)
    provenance = Provenance.now(recorded(chosen), [chosen.seed], hashes)
    made = tuning_of(setup, schedule, predicted, provenance)
    made.write(where)
    tell(costs, _positions(acceptance), made, spread, where)
    served, interrupted = proven(chosen, made, rest, predicted) if chosen.proves else ([], False)
    pairs = prove.compared(predicted, served)
    figures = prove.figures(served, pairs)
    runs = [*studied, *prove.schedule_runs(schedule), *pairs, *served]
    ResultFile(provenance=provenance, runs=runs, figures=figures).write(out)
    options.show({name: value for name, value in figures.items() if not name.startswith(("ttft", "tpot"))})
    typer.echo(f"result in {out}" + ("; interrupted: the same command goes on" if interrupted else ""))
    return INTERRUPTED if interrupted else 0


def chats_of(chosen: Options, needed: int) -> list[Messages]:
    """Held-out consultations, or the file's own chats, gone through again where they are too few.

    Raises:
        PromptsError: a file that cannot be read, or without any.
    """
    if chosen.prompts is None:
        return held_out(needed, chosen.seed)
    own = read_messages(chosen.prompts)
    if not own:
        raise PromptsError(f"{chosen.prompts} has no prompts; write one chat a line")
    if len(own) < needed:
        typer.echo(f"{len(own)} prompts where {needed} are wanted: repeated ones are found in the prefix cache")
    return [own[place % len(own)] for place in range(needed)]


def recorded(chosen: Options) -> dict[str, JsonValue]:
    """For the provenance."""
    kept = {name: value for name, value in vars(chosen).items() if name != "work"}
    return options.recorded(kept, command="aerie tune", environment=options.environment(ENVIRONMENT))


def studied_runs(
    chosen: Options, plan: Plan, setup: Setup, prompts: Sequence[Prompt], hashes: dict[str, str]
) -> list[Run]:
    """The runs of the study."""
    shaping: dict[str, JsonValue] = {**recorded(chosen), "hashes": {**hashes}}
    for unshaping in ("rounds", "finals", "proves"):
        shaping.pop(unshaping)
    points = Points(chosen.work, shaping)
    # With a K = 0 in it, for the worker that serves such schedules.
    everywhere = _tuning(setup, ((1, LAST - 1, chosen.most), (LAST, LAST, 0)), ())
    file = points.folder / "switched.json"
    everywhere.write(file)
    arguments = study.switched_variant(
        (*chosen.serving, *chosen.drafting), file.resolve(), asynchronous=plan.device != "cpu"
    )
    servers = [
        Variant(name=BASELINE, arguments=(*chosen.serving, "--no-draft"), draft_tokens=0),
        Variant(name=SWITCHED, arguments=arguments),
    ]
    return study.measure(chosen.study, points, prompts, servers, (points.folder / "k").resolve())


def predictions_of(
    chosen: Options, studied: Sequence[Run], schedule: tuple[Range, ...]
) -> dict[tuple[str, int], float]:
    """Of every variant of the proof at each load, corrected by how far off the predictions were in its trials."""
    costs, acceptance = study.costs_of(studied)[0], study.acceptance_of(studied)
    off = trial.corrections(*_tried(chosen, studied))
    found = prove.predictions(costs, acceptance, schedule, chosen.most, chosen.proof)
    return {(name, level): rate * off.get(level, 1.0) for (name, level), rate in found.items()}


def _tried(chosen: Options, studied: Sequence[Run]) -> tuple[trial.ByLevel, trial.ByLevel]:
    """What was predicted for the trials, and what came of them; both are empty where there were none."""
    tried = [run.measured for run in studied if run.benchmark == "tune.trial"]
    costs, acceptance = study.costs_of(studied)[0], study.acceptance_of(studied)
    return (trial.predicted(costs, acceptance, chosen.study.sizes), trial.outcome(tried)) if tried else ({}, {})


def schedule_of(chosen: Options, studied: Sequence[Run]) -> tuple[Range, ...]:
    """By the trials; where there were none, by step times and acceptance."""
    if any(run.benchmark == "tune.trial" for run in studied):
        return trial.schedule(*_tried(chosen, studied))
    costs, spread = study.costs_of(studied)
    acceptance = study.acceptance_of(studied)
    return best_schedule(costs, _positions(acceptance), min(MOST_TOLERANCE, max(LEAST_TOLERANCE, spread)))


def _positions(acceptance: Record) -> list[float]:
    found = acceptance["positions"]
    return [float(str(one)) for one in found] if isinstance(found, list) else []


def _tuning(
    setup: Setup,
    schedule: tuple[Range, ...],
    predictions: tuple[Predicted, ...],
    provenance: dict[str, JsonValue] | None = None,
) -> Tuning:
    today = datetime.now(UTC).date()
    return Tuning(measured=today, setup=setup, schedule=schedule, predictions=predictions, provenance=provenance or {})


def tuning_of(
    setup: Setup, schedule: tuple[Range, ...], predicted: dict[tuple[str, int], float], provenance: Provenance
) -> Tuning:
    """The tuning file."""
    levels = {level: rate for (name, level), rate in predicted.items() if name == prove.TUNED}
    told = tuple(
        Predicted(concurrency=level, draft_tokens=scheduled(schedule, level), tokens_per_s=round(rate, 2))
        for level, rate in levels.items()
    )
    return _tuning(setup, schedule, told, provenance.model_dump(mode="json", exclude_defaults=True))


def tell(costs: Costs, positions: Sequence[float], made: Tuning, spread: float, where: Path) -> None:
    """Print step times, and what was decided."""
    typer.echo("ms a step, by requests in it: no draft; K = 0, 1, ...")
    for batch in costs.batches:
        own = " ".join(f"{costs.of_step(batch, k):7.1f}" for k in sorted(costs.step))
        typer.echo(f"{batch:4}: {costs.of_step(batch, None):7.1f}; {own}")
    typer.echo(f"{describe(made.schedule)} (step times differ by {spread:.1%} from round to round)")
    for batch in costs.batches:
        ours = rates(costs, positions, batch)[scheduled(made.schedule, batch)]
        ahead = 1000 * batch / costs.of_step(batch, None) / ours - 1
        if ahead > MOST_TOLERANCE:
            typer.echo(f"with {batch} requests a server without a draft (--no-draft) would be {ahead:.0%} faster")
    typer.echo(f"written to {where}")


def proven(
    chosen: Options, made: Tuning, prompts: Sequence[Prompt], predicted: dict[tuple[str, int], float]
) -> tuple[list[Run], bool]:
    """The runs of the proof, and whether it was interrupted."""
    digest = hashlib.sha256(json.dumps([made.schedule, made.setup.key]).encode()).hexdigest()[:16]
    # A name that stands for the schedule: what another one was measured at is not taken for this one's.
    file = (chosen.work / f"tuned-{digest}.json").resolve()
    made.write(file)
    compared = prove.variants(chosen.serving, chosen.drafting, chosen.most, file)
    every, last = prompts[: chosen.proof.prompts_needed], prompts[chosen.proof.prompts_needed :]
    plan = Sweep(compared, {"held-out": every}, chosen.proof)
    further = partial(prove.finals, plan, last, chosen.finals) if chosen.finals else None
    points = plan.points(chosen.work)
    turns = list(plan.turns())
    seconds = sum(
        TURN_SECONDS
        + chosen.proof.size(turn.cell.concurrency)
        * chosen.max_tokens
        / predicted[turn.variant.name, turn.cell.concurrency]
        for turn in turns
        if points.found(turn.name) is None
    )
    typer.echo(
        f"proof: {len(compared)} servers, {len(turns)} turns, about {seconds / 60:.0f} min once they are up; "
        f"then {chosen.finals} rounds of the fastest"
    )
    try:
        return sweep(plan, points, further), False
    except KeyboardInterrupt:
        return finished_so_far(plan, points, further), True
