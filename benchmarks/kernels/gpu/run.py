# SPDX-License-Identifier: Apache-2.0
"""`aerie bench kernels`: checks, times, writes `kernels-GPU.json` and its picture. Its figures: figures.py.

In order: a copy's bandwidth; every way against float64 in bfloat16 and float16; with `--tune` the search for cuts; then
time in bfloat16, by replayed graphs, every way in turns on 16 copies of its weight. A point that fails or that the time
has no room for is named in the result. Ctrl-C leaves a result of what was measured, marked incomplete.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aerie.artefacts import REPOSITORY, write_atomic, write_json
from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.kernels.gpu import machine, plot, tune
from aerie.benchmarks.kernels.gpu.figures import figures
from aerie.benchmarks.kernels.gpu.plan import Point, Searched, plan
from aerie.benchmarks.kernels.gpu.session import Session
from aerie.benchmarks.kernels.gpu.shapes import SHAPES
from aerie.benchmarks.kernels.timing import Budget, GraphTimer
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.kernels.int4_gemm import tuning

NAME = "kernels.gpu"
DEVICE = "cuda"
SHOWN = re.compile(r"copy_gbs|complete|\w+_ratio_(min_)?m\d+|ratio_step_t\d+")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    rounds: int
    """Of each point; fewer where the time does not suffice."""
    budget_seconds: float
    tune: bool
    tune_seconds: float
    seed: int


def result_path(gpu: str) -> Path:
    """Where the result of a GPU goes: among the others in a checkout, else the working directory."""
    folder = REPOSITORY / "benchmarks/results"
    return (folder if folder.is_dir() else Path()) / f"kernels-{tuning.gpu_table(gpu)}.json"


def known_table() -> tuning.Table:
    """The table of cuts that serves this GPU now."""
    return tuning.table(*tuning.table_names(torch.cuda.get_device_name(), torch.cuda.get_device_capability()))


def measure(session: Session, points: Iterable[Point]) -> bool:
    """All points, in order; returns whether it was interrupted."""
    try:
        for name, point in points:
            session.point(name, point)
    except KeyboardInterrupt:
        return True
    return False


def result(session: Session, chosen: Options, gpu: dict[str, JsonValue], interrupted: bool) -> ResultFile:
    """The result of what was measured, whole or not."""
    records = [*session.records, session.end(interrupted)]
    provenance = Provenance.now({**asdict(chosen), "command": "aerie bench kernels"}, [chosen.seed])
    return ResultFile(
        provenance=provenance.model_copy(update={"machine": {**provenance.machine, "gpu": gpu}}),
        runs=[Run(benchmark=NAME, measured=record) for record in records],
        figures=figures(records),
    )


def write(made: ResultFile, out: Path) -> list[Path]:
    """The result and, where there is anything to draw, its picture; returns what was written."""
    made.write(out)
    picture = plot.draw(made)
    if picture is None:
        return [out]
    write_atomic(out.with_suffix(".svg"), picture)
    return [out, out.with_suffix(".svg")]


def write_table(made: ResultFile, known: tuning.Table, result_name: str) -> Path:
    """The table of cuts of this GPU, from a result with a search."""
    gpu, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    records = [run.measured for run in made.runs]
    ahead = tune.ahead(made.figures, SHAPES, f"{major}.{minor}", result_name)
    path = tuning.TABLES / f"{tuning.gpu_table(gpu)}.json"
    write_json(path, tune.table(known, tune.entries(records, SHAPES, known), ahead, gpu, result_name))
    return path


def show(made: ResultFile, session: Session) -> None:
    """What came of it, for whoever waits at the terminal."""
    console = Console(highlight=False)
    for line in session.refusals():
        console.print(f"not measured: {line}", markup=False, soft_wrap=True)
    if session.skipped:
        console.print(f"no time was left for {', '.join(session.skipped)}")
    if fewer := session.fewer_rounds():
        console.print(f"fewer rounds than {session.rounds}: {', '.join(fewer)}")
    options.show({name: value for name, value in made.figures.items() if SHOWN.fullmatch(name)})


def started(chosen: Options, progress: Progress) -> tuple[Session, Searched | None, dict[str, JsonValue]]:
    """The session with the number of its points, the search where one is asked for, and the GPU."""
    gpu = machine.gpu() | {"before": machine.state()}
    searched = Searched(known_table(), Budget(chosen.tune_seconds), DEVICE) if chosen.tune else None
    seconds = chosen.budget_seconds + (chosen.tune_seconds if chosen.tune else 0.0)
    session = Session(GraphTimer(), Budget(seconds), chosen.rounds)
    session.points = sum(1 for _ in plan(session, DEVICE, machine.highest_clock(gpu), searched))
    task = progress.add_task("", total=session.points)
    session.advance = lambda name: progress.update(task, advance=1, description=name)
    return session, searched, gpu


def run(out: Path | None, chosen: Options) -> int:
    """Run the benchmark; returns the exit status: 0, or 130 when it was interrupted.

    Raises:
        BenchmarkError: there is no GPU, or an operator of ours is wrong or failed; the result is written all the same.
    """
    machine.need_gpu()
    torch.manual_seed(chosen.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        session, searched, gpu = started(chosen, progress)
        interrupted = measure(session, plan(session, DEVICE, machine.highest_clock(gpu), searched))
    gpu["after"] = machine.state()
    made = result(session, chosen, gpu, interrupted)
    out = out or result_path(torch.cuda.get_device_name())
    written = write(made, out)
    if searched is not None and not interrupted and any(record["kind"] == "cut" for record in session.records):
        written.append(write_table(made, searched.known, out.name))
    show(made, session)
    print("written:", *written)
    if wrong := session.wrong():
        raise BenchmarkError(f"ours failed at {', '.join(wrong)}; {out} says how")
    return 130 if interrupted else 0
