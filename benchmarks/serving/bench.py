# SPDX-License-Identifier: Apache-2.0
"""`aerie bench serving`: a sweep (sweep.py) of what the command line names (chosen.py), into one result file.

Ctrl-C, or an error midway, leaves a result of what was measured, its figure `complete` at 0; the same command goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from aerie import artefacts
from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.results_file import Provenance, ResultFile, ResultsError, Run
from aerie.benchmarks.serving.chosen import Pool, Servers, check_memory, draft_beside, pools, scenario_files
from aerie.benchmarks.serving.serve_options import told
from aerie.benchmarks.serving.sweep import NAME, Sweep, SweepOptions, finished, sweep
from aerie.benchmarks.serving.sweep_figures import figures, places
from aerie.benchmarks.serving.variants import BASELINE, Variant

SHOWN = ("tokens_per_s", "speedup", "acceptance_length", "ttft_ms", "tpot_ms", "identical")


@dataclass(frozen=True)
class Command:
    """What was typed."""

    out: Path
    servers: Servers
    scenarios: tuple[str, ...]
    options: SweepOptions
    work: Path


def earlier(out: Path) -> ResultFile | None:
    """The result that is at `out`.

    Raises:
        ResultsError: it must not be overwritten: of another kind, or of other versions.
    """
    if not out.exists():
        return None
    try:
        found = ResultFile.read(out)
    except ResultsError:
        raise ResultsError(f"{out} is there and no result file; name another by --out, or remove it") from None
    if any(run.benchmark != NAME for run in found.runs):
        raise ResultsError(f"{out} is of {found.runs[0].benchmark}; name another by --out, or remove it")
    now = artefacts.versions()
    if found.provenance.versions != now:
        names = sorted({*now, *found.provenance.versions})
        pairs = {name: (found.provenance.versions.get(name), now.get(name)) for name in names}
        told = ", ".join(f"{name} {old}, now {new}" for name, (old, new) in pairs.items() if old != new)
        raise ResultsError(f"{out} is of other versions ({told}); name another by --out, or remove it")
    return found


def provenance(command: Command, variants: Sequence[Variant], found: Mapping[str, Pool]) -> Provenance:
    """Of a result; made before anything is measured, since sources may change meanwhile."""
    chosen, files = command.options, scenario_files(command.scenarios)
    arguments = options.recorded(
        {
            "command": "aerie bench serving",
            **{name: value for name, value in chosen if name != "seed"},
            "draft": draft_beside(command.servers.model, command.servers.draft),
            "draft_tokens": command.servers.draft_tokens,
            "variants": {one.name: one.url or [_portable(word) for word in one.arguments] for one in variants},
            "model_name": command.servers.model_name,
            "scenarios": {
                name: {"file": files[name], "prompts": len(one.prompts), "left_out": one.left_out}
                for name, one in found.items()
            },
            "environment": options.environment(),
        }
    )
    drafts = {folder: f"draft_{one.name}" for one in reversed(variants) if (folder := _draft(one)) is not None}
    read = {"model": chosen.model, **{f"scenario_{name}": path for name, path in files.items()}}
    hashes = options.inputs(**read, **{role: folder for folder, role in drafts.items()})
    return Provenance.now(arguments, [chosen.seed], hashes)


def _portable(word: str) -> str | Path:
    return Path(word) if Path(word).is_absolute() else word


def _draft(variant: Variant) -> Path | None:
    draft = told(variant.arguments, "--draft")
    return Path(draft) if draft is not None and Path(draft).is_dir() else None


def write(made: ResultFile, before: ResultFile | None, out: Path) -> Path:
    """Write a result; a whole one that is there gives way to a whole one only."""
    whole_before = before is not None and before.figures.get("complete") == 1
    if whole_before and made.figures["complete"] == 0:
        out = out.with_suffix(".partial.json")
    made.write(out)
    return out


def weights(variants: Sequence[Variant], model: Path) -> int:
    """Bytes of the largest checkpoints that one server loads."""
    folders = [model, *(folder for one in variants if (folder := _draft(one)) is not None)]
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in folders]
    return sizes[0] + max(sizes[1:], default=0)


def show(runs: Sequence[Run], found: Mapping[str, float]) -> None:
    """A table of every cell, and where each variant begins to lose."""
    names = ("variant", "at once", "tokens/s", f"x {BASELINE}", "tokens/step", "TTFT ms", "TPOT ms", "same texts")
    table = Table(*names, box=SIMPLE, padding=(0, 1, 0, 0))
    for place in places(runs):
        values = [found.get(f"{figure}_{place.suffix}") for figure in SHOWN]
        words = ["" if value is None else f"{value:.4g}" for value in values]
        spread = found.get(f"speedup_{place.suffix}_std")
        words[1] += "" if spread is None else f" ± {spread:.2g}"
        table.add_row(place.title, str(place.concurrency), *words)
    Console().print(table)


def run(command: Command) -> int:
    """Measure, write, show; returns the exit status: 0, or 130 when it was interrupted.

    Raises:
        BadOption: an option cannot be meant.
        BenchmarkError: a server is down or failed, prompts cannot be read, or the result must not be overwritten.
    """
    before = earlier(command.out)
    variants = command.servers.all()
    found = pools(scenario_files(command.scenarios), command.options)
    for name, one in found.items():
        if one.left_out:
            print(f"{name}: {one.left_out} prompts are too long or too short for the load generator, and left out")
    made_by = provenance(command, variants, found)
    plan = Sweep(variants, {name: one.prompts for name, one in found.items()}, command.options)
    points = plan.points(command.work)
    status, problem = 0, None
    try:
        missing = plan.missing(points)
        check_memory([one for one in variants if one.name in missing], weights(variants, command.options.model))
        sweep(plan, points)
    except KeyboardInterrupt:
        status = 130
    except BenchmarkError as error:
        problem = error
    if runs := finished(plan, points):
        whole = len(runs) == len(list(plan.turns()))
        made = ResultFile(provenance=made_by, runs=runs, figures=figures(runs) | {"complete": float(whole)})
        show(runs, made.figures)
        left = "" if whole else "; the same command goes on from here"
        print(f"written: {write(made, before, command.out)}, {len(runs)} measurements{left}")
    if problem is not None:
        raise problem
    return status
