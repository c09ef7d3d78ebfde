# SPDX-License-Identifier: Apache-2.0
"""At which learning rates does a gate pay? One seed, simulated acceptance, over the rates of head and gate.

`python -m aerie.benchmarks.study.rates --out benchmarks/results/draft-gate-rates.json`. A gate's projection starts at
zero and has a rate of its own, `gate_learning_rate` times the head's. Each kind of head is judged at its own best.

Figures: `tau_plain_lr_R`, `tau_headwise_lr_R_gate_F`, `tau_elementwise_lr_R_gate_F`: acceptance length for K = 4 at
temperature 0 on the validation answers, simulated by the trainer; R in thousandths. `gain_elementwise`: the best over
the best of plain, less 1; `gain_elementwise_gate_F`: the same at one F, of rates that both were trained at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from aerie.artefacts import REPOSITORY
from aerie.benchmarks import options
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.study.gates import GATES
from aerie.benchmarks.study.heads import last_entry, train_all, varied
from aerie.draft_models.contract import GateKind
from aerie.trainer.draft.recipe import DraftRecipe

NAME = "study.rates"
DRAFTED = 4
Point = tuple[GateKind, float, float]
"""Gate, rate of the head, and of what multiple of it the gate learns."""
POINTS: tuple[Point, ...] = (
    ("none", 2e-3, 1.0),
    ("none", 4e-3, 1.0),
    ("none", 8e-3, 1.0),
    ("headwise", 4e-3, 1.0),
    ("headwise", 4e-3, 4.0),
    ("elementwise", 2e-3, 1.0),
    ("elementwise", 2e-3, 4.0),
    ("elementwise", 2e-3, 16.0),
    ("elementwise", 4e-3, 1.0),
    ("elementwise", 4e-3, 4.0),
)


def named(point: Point) -> str:
    """Name of a point in figures and folders."""
    gate, rate, factor = point
    name = f"{GATES[gate]}_lr_{rate * 1000:g}"
    return name if gate == "none" else f"{name}_gate_{factor:g}"


def heads(recipe: DraftRecipe, work: Path) -> dict[Point, DraftRecipe]:
    """The recipe of every point."""
    return {
        point: varied(
            recipe,
            work / named(point),
            {"head.gate": point[0], "training.learning_rate": point[1], "training.gate_learning_rate": point[2]},
        )
        for point in POINTS
    }


def figures(lengths: Mapping[Point, float]) -> dict[str, float]:
    """From simulated acceptance lengths."""
    found = {f"tau_{named(point)}": round(length, 4) for point, length in lengths.items()}
    plain = {rate: length for (gate, rate, _), length in lengths.items() if gate == "none"}
    gated = {point: length for point, length in lengths.items() if point[0] == "elementwise"}
    found["gain_elementwise"] = round(max(gated.values()) / max(plain.values()) - 1, 4)
    for factor in sorted({factor for _, _, factor in gated}):
        same = {rate: length for (_, rate, one), length in gated.items() if one == factor}
        gain = max(same.values()) / max(plain[rate] for rate in same) - 1
        found[f"gain_elementwise_gate_{factor:g}"] = round(gain, 4)
    return found


def main(
    out: options.Out,
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Recipe that the heads share.")] = (
        REPOSITORY / "trainer/recipes/clinic-gate-study.yaml"
    ),
    work: Annotated[Path, typer.Option(file_okay=False, help="Heads.")] = Path("runs/gate-rates"),
    jobs: Annotated[int, typer.Option(min=1, help="Trainings side by side.")] = 2,
) -> None:
    """Train the heads that are missing, read their last simulation, write the result."""
    arguments = options.recorded(locals())
    shared = DraftRecipe.read(recipe)
    recipes = heads(shared, work)
    train_all({named(point): one for point, one in recipes.items()}, jobs)
    simulated = {point: last_entry(one.output)["length_K"] for point, one in recipes.items()}
    runs = [
        Run(benchmark=NAME, measured={"gate": gate, "learning_rate": rate, "gate_learning_rate": factor,
                                      "length_K": simulated[gate, rate, factor]})
        for gate, rate, factor in POINTS
    ]  # fmt: skip
    found = figures({point: float(lengths[DRAFTED - 1]) for point, lengths in simulated.items()})
    inputs = options.inputs(model=shared.target, recipe=recipe)
    ResultFile(provenance=Provenance.now(arguments, [shared.training.seed], inputs), runs=runs, figures=found).write(
        out
    )
    options.show(found)


if __name__ == "__main__":
    options.run(main)
