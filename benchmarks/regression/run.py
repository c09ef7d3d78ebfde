# SPDX-License-Identifier: Apache-2.0
"""`aerie bench check`: the shipped demo's acceptance and INT4 quality against committed floors."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.regression.floors import Floors
from aerie.benchmarks.regression.measure import engine_options, measure
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.acceptance import AcceptanceError
from aerie.draft_models.checkpoint import DraftMismatch, verify_draft
from aerie.draft_models.offline import offline_engine

NAME = "check"


def table(floors: Floors, measured: Mapping[str, float]) -> Table:
    """A row for each figure: now, its limit, what it was, whether it passes."""
    found = Table("figure", "now", "limit", "recorded", "change", "")
    for name, bound in floors.bounds.items():
        value = measured[name]
        limit = f"{'>=' if bound.kind == 'least' else '<='} {bound.limit:.4f}"
        change = f"{value / bound.measured - 1:+.2%}"
        verdict = "ok" if bound.beyond(value) <= 0 else "WORSE"
        found.add_row(name, f"{value:.4f}", limit, f"{bound.measured:.4f}", change, verdict)
    return found


def run(model: Path, draft: Path, floors_file: Path, out: Path | None, *, record: bool) -> None:
    """Measure, print the table; raises BenchmarkError that names what fell below its floor, and by how much."""
    floors = Floors.read(floors_file)
    try:
        verify_draft(draft, model)
        with offline_engine(engine_options(model, draft, floors.asked)) as engine:
            measured = {name: round(value, 6) for name, value in measure(engine, model, floors.asked).items()}
    except (AcceptanceError, DraftMismatch) as error:
        raise BenchmarkError(str(error)) from error
    arguments = options.recorded({"model": model, "draft": draft, **floors.asked.model_dump()})
    provenance = Provenance.now(arguments, [floors.asked.seed], options.inputs(model=model, draft=draft))
    if out is not None:
        raw = Run(benchmark=NAME, measured={**arguments, **measured})
        ResultFile(provenance=provenance, runs=[raw], figures=measured).write(out)
    Console().print(table(floors, measured))
    if record:
        floors.recorded(measured, provenance).write(floors_file)
    elif faults := floors.faults(measured):
        raise BenchmarkError("; ".join(faults))
