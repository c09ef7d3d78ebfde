# SPDX-License-Identifier: Apache-2.0
"""What INT4 costs: {rounding, AWQ, AutoRound} x groups of 64 and 128 x {symmetric, asymmetric}, on one 16-bit model.

`python -m aerie.benchmarks.quality.int4 --model MODEL --recipe TEXT --name dense --out FILE`, for each model;
`report.merge` joins the files. Each checkpoint is made by `aerie quantize` in a process of its own, on text that the
16-bit model wrote; its report gives perplexity, KL divergence and agreement on held-out answers, the process its time
and peak memory, an engine the acceptance length of a draft, if there is one. What exists is not made again.

Figures, with METHOD_gSIZE_{sym,asym} as VARIANT: `NAME_VARIANT_ppl_loss` (relative), `_kl`, `_top1`, `_seconds`,
`_peak_gib`, `_acceptance`; `NAME_ppl_loss_rtn` and `NAME_ppl_loss_best`: symmetric, groups of 128, rounding and the
better of the others; with `--generic`, `NAME_ppl_loss_generic`: the better one again, calibrated on that text instead.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from aerie.artefacts import write_json
from aerie.benchmarks import options
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.study.heads import StudyError
from aerie.benchmarks.study.measure import Job, measure_all
from aerie.quant.report import QuantReport
from aerie.quant.stream import REPORT_NAME
from aerie.trainer.quantise import Recipe

NAME = "quality.int4"
METHODS = ("rtn", "awq", "autoround")
GROUPS = (64, 128)
DRAFT_TOKENS = 4
COST = "cost.json"


def variant(method: str, group: int, symmetric: bool) -> str:
    """Name of a checkpoint in figures and folders."""
    return f"{method}_g{group}_{'sym' if symmetric else 'asym'}"


def variants(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Every combination, by name, on the recipe's text."""
    for method in METHODS:
        for group in GROUPS:
            for symmetric in (True, False):
                values = recipe.model_dump() | {"method": method, "group_size": group, "symmetric": symmetric}
                yield variant(method, group, symmetric), Recipe.model_validate(values)


def convert(model: Path, out: Path, recipe: Recipe) -> dict[str, float]:
    """Run `aerie quantize` unless it was run before; its seconds and the peak memory of its process, in GiB."""
    cost = out.with_name(f"{out.name}.{COST}")
    if not (out / REPORT_NAME).is_file():
        said, log = out.with_name(f"{out.name}.yaml"), out.with_name(f"{out.name}.log")
        # JSON is YAML.
        write_json(said, recipe.model_dump(mode="json"))
        command = [sys.executable, "-P", "-m", "aerie", "quantize", str(model), str(out), "--recipe", str(said)]
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise StudyError(f"{out.name} was not quantised (status {process.returncode}); see {log}")
        write_json(cost, {"seconds": time.monotonic() - started, "peak_gib": used.ru_maxrss / 2**20})
    found: dict[str, float] = json.loads(cost.read_text())
    return found


def of_report(report: QuantReport, cost: Mapping[str, float], acceptance: float | None) -> dict[str, float]:
    """One checkpoint's figures."""
    quality = report.quality
    if quality is None:
        raise StudyError("the recipe names no held-out text; add `calibration: {source: generated}`")
    found = {
        "ppl_loss": quality.perplexity_loss,
        "perplexity": quality.perplexity_after,
        "kl": quality.kl,
        "top1": quality.top1_agreement,
        "ratio": report.ratio,
        "output_error": report.decoder[-1].output_errors["held_out"],
        **cost,
    }
    return found if acceptance is None else found | {"acceptance": acceptance}


def figures(name: str, measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Flat names; `generic` is a variant like the others."""
    found = {
        f"{name}_{one}_{figure}": float(f"{value:.5g}")
        for one, values in measured.items()
        for figure, value in values.items()
    }
    tuned = [measured[variant(method, 128, True)]["ppl_loss"] for method in METHODS[1:]]
    found[f"{name}_ppl_loss_rtn"] = float(f"{measured[variant('rtn', 128, True)]['ppl_loss']:.5g}")
    found[f"{name}_ppl_loss_best"] = float(f"{min(tuned):.5g}")
    if "generic" in measured:
        found[f"{name}_ppl_loss_generic"] = float(f"{measured['generic']['ppl_loss']:.5g}")
    return found


def main(
    out: options.Out,
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="16-bit model.")],
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text, and what the variants share.")],
    name: Annotated[str, typer.Option(help="Of the model, in figures.")] = "dense",
    draft: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Draft to measure.")] = None,
    generic: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="JSONL of generic text.")] = None,
    work: Annotated[Path, typer.Option(file_okay=False, help="Checkpoints.")] = Path("runs/int4-quality"),
    count: options.Count = 64,
    max_tokens: options.MaxTokens = 256,
) -> None:
    """Quantise in every way, measure, write the result."""
    arguments = options.recorded(locals())
    shared = Recipe.from_yaml(recipe)
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    made = dict(variants(shared))
    costs = {one: convert(model, folder / one, made[one]) for one in made}
    reports = {one: QuantReport.model_validate_json((folder / one / REPORT_NAME).read_text()) for one in made}
    lengths = acceptances(folder, list(made), draft, count, max_tokens)
    measured = {one: of_report(reports[one], costs[one], lengths.get(one)) for one in made}
    if generic is not None:
        best = min(METHODS[1:], key=lambda method: measured[variant(method, 128, True)]["ppl_loss"])
        changed = made[variant(best, 128, True)].model_dump()
        text = {"source": "file", "path": generic, "held_out": held_out_file(shared, model)}
        cost = convert(model, folder / "generic", Recipe.model_validate(changed | {"calibration": text}))
        report = QuantReport.model_validate_json((folder / "generic" / REPORT_NAME).read_text())
        measured["generic"] = of_report(report, cost, None)
    runs = [Run(benchmark=NAME, measured={"model": name, "variant": one, **values}) for one, values in measured.items()]
    found = figures(name, measured)
    inputs = options.inputs(model=model, recipe=recipe, draft=draft)
    ResultFile(provenance=Provenance.now(arguments, [0], inputs), runs=runs, figures=found).write(out)
    options.show(found)


def acceptances(folder: Path, names: list[str], draft: Path | None, count: int, max_tokens: int) -> dict[str, float]:
    """Greedy acceptance length of a draft on every checkpoint; empty without a draft."""
    if draft is None:
        return {}
    jobs = [
        Job(target=folder / name, head=draft, draft_tokens=DRAFT_TOKENS, temperatures=(0.0,), prompts=count,
            max_tokens=max_tokens, seed=0)
        for name in names
    ]  # fmt: skip
    measured = measure_all(jobs, folder / "measured", 1)
    return {name: one[0.0].pooled.length for name, one in zip(names, measured, strict=True)}


def held_out_file(recipe: Recipe, model: Path) -> Path:
    """The held-out answers of generated text as a file, so that another calibration is judged on the same."""
    from aerie.trainer.quantise import Generated, held_out_answers

    if not isinstance(recipe.calibration, Generated):
        raise StudyError("--generic compares with text that the model wrote; set `calibration: {source: generated}`")
    return held_out_answers(model, recipe.calibration)


if __name__ == "__main__":
    options.run(main)
