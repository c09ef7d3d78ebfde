# SPDX-License-Identifier: Apache-2.0
"""What INT4 costs: {rounding, AWQ, AutoRound} x groups of 64 and 128 x {symmetric, asymmetric}, on one 16-bit model.

`python -m aerie.benchmarks.quality.int4 --model MODEL --recipe TEXT --name dense --out FILE`, for each model;
`report.merge` joins the files. Each checkpoint is made by `aerie quantize` in a process of its own, on text that the
16-bit model wrote; its report gives perplexity, KL divergence and agreement on held-out answers, the process its time
and peak memory, an engine the acceptance length of a draft, if there is one. What exists is not made again.

Figures, with METHOD_gSIZE_{sym,asym} as VARIANT: `NAME_VARIANT_ppl_loss` (relative), `_kl`, `_top1`, `_seconds`,
`_cpu_seconds`, `_peak_gib`, `_acceptance`, and `NAME_bf16_acceptance`. At groups of 128, symmetric: `ppl_loss_rtn`, and
`ppl_loss_best`, the better of the other methods; with `--generic`, `ppl_loss_self` is that again and `ppl_loss_generic`
the better of them when calibrated on generic English (`quality.generic`). A name other than `dense` goes in between:
`ppl_loss_moe_self`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from aerie.artefacts import write_json
from aerie.benchmarks import options
from aerie.benchmarks.quality import generic as english
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.study.heads import StudyError
from aerie.benchmarks.study.measure import Job, measure_all
from aerie.quant.report import QuantReport
from aerie.quant.stream import REPORT_NAME
from aerie.trainer.quantise import Recipe

NAME = "quality.int4"
METHODS = ("rtn", "awq", "autoround")
GROUPS = (64, 128)
PLAIN, GENERIC = "bf16", "generic"
DOCUMENTS = 128
"""Of generic English: as many as the recipe has prompts."""
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


def convert(model: Path, out: Path, recipe: Recipe, threads: int) -> dict[str, float]:
    """Run `aerie quantize` unless it was run before; its seconds and the peak memory of its process, in GiB."""
    cost = out.with_name(f"{out.name}.{COST}")
    if not (out / REPORT_NAME).is_file():
        said, log = out.with_name(f"{out.name}.yaml"), out.with_name(f"{out.name}.log")
        # JSON is YAML.
        write_json(said, recipe.model_dump(mode="json"))
        command = [sys.executable, "-P", "-m", "aerie", "quantize", str(model), str(out), "--recipe", str(said)]
        started = time.monotonic()
        with log.open("wb") as output:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise StudyError(f"{out.name} was not quantised (status {process.returncode}); see {log}")
        took = {"seconds": time.monotonic() - started, "cpu_seconds": used.ru_utime + used.ru_stime}
        write_json(cost, {**took, "peak_gib": used.ru_maxrss / 2**20})
    found: dict[str, float] = json.loads(cost.read_text())
    return found


def convert_all(model: Path, folder: Path, made: Mapping[str, Recipe], parallel: int) -> dict[str, dict[str, float]]:
    """Every checkpoint, by name, so many at a time; what each took."""
    threads = max(1, (os.cpu_count() or 1) // parallel)
    with ThreadPoolExecutor(parallel) as pool:
        costs = pool.map(lambda one: convert(model, folder / one, made[one], threads), made)
        return dict(zip(made, costs, strict=True))


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
    """Flat names; the last ones are the answers."""
    found = {f"{name}_{one}_{figure}": value for one, values in measured.items() for figure, value in values.items()}
    prefix = "ppl_loss_" if name == "dense" else f"ppl_loss_{name}_"
    tuned = [variant(method, 128, True) for method in METHODS[1:]]
    found[f"{prefix}rtn"] = measured[variant("rtn", 128, True)]["ppl_loss"]
    found[f"{prefix}best"] = min(measured[one]["ppl_loss"] for one in tuned)
    other = [measured[f"{GENERIC}_{one}"]["ppl_loss"] for one in tuned if f"{GENERIC}_{one}" in measured]
    if other:
        found |= {f"{prefix}self": found[f"{prefix}best"], f"{prefix}generic": min(other)}
    return {key: float(f"{value:.5g}") for key, value in found.items()}


def main(
    out: options.Out,
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="16-bit model.")],
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text, and what the variants share.")],
    name: Annotated[str, typer.Option(help="Of the model, in figures.")] = "dense",
    draft: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Draft to measure.")] = None,
    generic: Annotated[bool, typer.Option("--generic", help="Calibrate on generic English as well.")] = False,
    work: Annotated[Path, typer.Option(file_okay=False, help="Checkpoints.")] = Path("runs/int4-quality"),
    parallel: Annotated[int, typer.Option(min=1, help="Checkpoints made, and engines run, at a time.")] = 1,
    count: options.Count = 64,
    max_tokens: options.MaxTokens = 256,
) -> None:
    """Quantise in every way, measure, write the result."""
    arguments = options.recorded(locals())
    shared = Recipe.from_yaml(recipe)
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    # Asked once, here, rather than by every process.
    held_out = answered(shared, model)
    made = dict(variants(shared))
    if generic:
        made |= calibrated_on_english(made, folder, held_out)
    costs = convert_all(model, folder, made, parallel)
    reports = {one: QuantReport.model_validate_json((folder / one / REPORT_NAME).read_text()) for one in made}
    targets = {PLAIN: model} | {one: folder / one for one in made}
    lengths = acceptances(targets, folder, draft, count, max_tokens, parallel)
    measured = {one: of_report(reports[one], costs[one], lengths.get(one)) for one in made}
    runs = [
        Run(benchmark=NAME, measured={"model": name, "variant": one, **values, "commit": commit(reports[one])})
        for one, values in measured.items()
    ]
    if lengths:
        measured[PLAIN] = {"acceptance": lengths[PLAIN]}
    found = figures(name, measured)
    # Several models' results become one file.
    inputs = options.inputs(**{f"{name}_model": model, "recipe": recipe, f"{name}_draft": draft})
    ResultFile(provenance=Provenance.now(arguments, [0], inputs), runs=runs, figures=found).write(out)
    options.show(found)


def commit(report: QuantReport) -> str:
    """Of the code that made a checkpoint."""
    return str(report.provenance["commit"])


def answered(recipe: Recipe, model: Path) -> Path:
    """The file of the model's held-out answers, on which every checkpoint is judged; calibration's are written too."""
    from aerie.trainer.quantise import Generated, documents, held_out_answers

    if not isinstance(recipe.calibration, Generated):
        raise StudyError("the model must write the text itself; set `calibration: {source: generated}`")
    documents(model, recipe)
    return held_out_answers(model, recipe.calibration)


def calibrated_on_english(made: Mapping[str, Recipe], folder: Path, held_out: Path) -> dict[str, Recipe]:
    """The symmetric variants of groups of 128 again, that look at text, with as many documents of generic English."""
    path = folder / f"{GENERIC}.jsonl"
    english.write(path, DOCUMENTS)
    calibration = {"calibration": {"source": "file", "path": path, "held_out": held_out}}
    names = [variant(method, 128, True) for method in METHODS[1:]]
    return {f"{GENERIC}_{name}": Recipe.model_validate(made[name].model_dump() | calibration) for name in names}


def acceptances(
    targets: Mapping[str, Path], folder: Path, draft: Path | None, count: int, max_tokens: int, parallel: int
) -> dict[str, float]:
    """Greedy acceptance length of a draft on every checkpoint; empty without a draft."""
    if draft is None:
        return {}
    jobs = [
        Job(target=target, head=draft, draft_tokens=DRAFT_TOKENS, temperatures=(0.0,), prompts=count,
            max_tokens=max_tokens, seed=0)
        for target in targets.values()
    ]  # fmt: skip
    measured = measure_all(jobs, folder / "measured", parallel)
    return {name: one[0.0].pooled.length for name, one in zip(targets, measured, strict=True)}


if __name__ == "__main__":
    options.run(main)
