# SPDX-License-Identifier: Apache-2.0
"""On which target should a head be trained, and does an on-policy stage pay? Acceptance in the engine, over seeds.

`python -m aerie.benchmarks.study.targets --out benchmarks/results/draft-int4-study.json`, after `make demo` left the
16-bit main model and its INT4 twin under `runs/clinic-demo`.

1. {16-bit, INT4 target} x {head trained on the answers and states of the 16-bit target, of the INT4 one}.
2. Heads whose last epochs are an on-policy stage (trainer/draft/loss.py) against heads with as many supervised epochs:
   the same number of updates over the same batches, both on the INT4 target.

Figures: `tau_TARGET_HEAD` (K = 4, temperature 0; mean over seeds, with `_std`), `gain_int4_head` =
tau_int4_int4 / tau_int4_bf16 - 1 and `onpolicy_gain`, both paired by seed, with `_std`; `_t1` at temperature 1.
"""

from pathlib import Path
from typing import Annotated

import typer

from aerie.artefacts import REPOSITORY
from aerie.benchmarks import options
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.study.gates import RATES, TEMPERATURES, counts, summary
from aerie.benchmarks.study.heads import train_all, varied
from aerie.benchmarks.study.measure import Job, measure_all
from aerie.trainer.draft.recipe import DraftRecipe

NAME = "study.targets"
DRAFT_TOKENS = 4
Target = Annotated[Path, typer.Option(exists=True, file_okay=False)]


def variants(recipe: DraftRecipe, bf16: Path, seeds: int, on_policy_epochs: int, work: Path) -> dict[str, DraftRecipe]:
    """Recipes by head's name: `bf16-SEED`, `int4-SEED`, and `onpolicy-SEED` with as many epochs in all."""
    epochs = recipe.training.epochs
    found = {}
    for seed in range(seeds):
        changes: dict[str, dict[str, object]] = {
            "int4": {},
            "bf16": {"target": str(bf16)},
            "onpolicy": {
                "training.epochs": epochs - on_policy_epochs,
                "training.on_policy": {"epochs": on_policy_epochs},
            },
        }
        for name, change in changes.items():
            shared = {"training.gate_learning_rate": RATES[recipe.head.gate], "training.seed": seed}
            found[f"{name}-{seed}"] = varied(recipe, work / f"{name}-{seed}", {**shared, **change})
    return found


def figures(lengths: dict[tuple[str, str, float], list[float]]) -> dict[str, float]:
    """From acceptance lengths by target, head and temperature, one for each seed."""
    found: dict[str, float] = {}
    for temperature in TEMPERATURES:
        end = "" if temperature == 0 else "_t1"
        for (target, head, at), values in lengths.items():
            if at == temperature:
                found |= summary(f"tau_{target}_{head}{end}", values)
        pairs = {"gain_int4_head": ("int4", "bf16"), "onpolicy_gain": ("onpolicy", "int4")}
        for name, (head, other) in pairs.items():
            both = zip(lengths["int4", head, temperature], lengths["int4", other, temperature], strict=True)
            found |= summary(f"{name}{end}", [one / against - 1 for one, against in both])
    return found


def main(
    out: options.Out,
    bf16: Target = Path("runs/clinic-demo/main"),
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Recipe that the heads share.")] = (
        REPOSITORY / "trainer/recipes/clinic-gate-study.yaml"
    ),
    work: Annotated[Path, typer.Option(file_okay=False, help="Heads and measurements.")] = Path("runs/target-study"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each kind of head: 0, 1, ...")] = 3,
    on_policy_epochs: Annotated[int, typer.Option(min=1, help="Of the epochs, how many are on policy.")] = 1,
    count: options.Count = 64,
    max_tokens: options.MaxTokens = 256,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings, then engines, side by side.")] = 2,
) -> None:
    """Train the heads, measure them on both targets, write the result."""
    arguments = options.recorded(locals())
    shared = DraftRecipe.read(recipe)
    heads = variants(shared, bf16, seeds, on_policy_epochs, work)
    train_all(heads, jobs)
    targets = {"int4": shared.target, "bf16": bf16}
    points = [
        (target, name)
        for name in heads
        for target in targets
        if target == "int4" or not name.startswith("onpolicy")
    ]  # fmt: skip
    asked = [
        Job(
            target=targets[target],
            head=heads[name].output,
            draft_tokens=DRAFT_TOKENS,
            temperatures=TEMPERATURES,
            prompts=count,
            max_tokens=max_tokens,
            seed=0,
        )
        for target, name in points
    ]
    lengths: dict[tuple[str, str, float], list[float]] = {}
    runs = []
    for (target, name), measured in zip(points, measure_all(asked, work / "measured", jobs), strict=True):
        kind, seed = name.rsplit("-", 1)
        for temperature, acceptance in measured.items():
            lengths.setdefault((target, kind, temperature), []).append(acceptance.pooled.length)
            where = {"target": target, "head": kind, "seed": int(seed), "temperature": temperature}
            runs.append(Run(benchmark=NAME, measured={**where, **counts(acceptance)}))
    inputs = options.inputs(int4=shared.target, bf16=bf16, recipe=recipe)
    found = figures(lengths)
    ResultFile(provenance=Provenance.now(arguments, list(range(seeds)), inputs), runs=runs, figures=found).write(out)
    options.show(found)


if __name__ == "__main__":
    options.run(main)
