# SPDX-License-Identifier: Apache-2.0
"""Train the heads that `gates.py` compares: every gate with every seed, on the same answers and captured states.

`python -m aerie.benchmarks.acceptance.gate_heads --out runs/gate-heads`. Nothing but the gate and the seed differs
between two heads; a head that exists is not trained again.
"""

from pathlib import Path
from typing import Annotated

import typer

from aerie.artefacts import REPOSITORY
from aerie.benchmarks import options
from aerie.draft_models.contract import GateKind
from aerie.trainer.draft.recipe import DraftRecipe
from aerie.trainer.draft.run import run_recipe

RECIPE = REPOSITORY / "trainer/recipes/clinic-draft.yaml"
GATES: tuple[GateKind, ...] = ("elementwise", "headwise", "none")


def variant(recipe: DraftRecipe, gate: GateKind, seed: int, epochs: int, out: Path) -> DraftRecipe:
    """The recipe with another gate, seed and length, written to `out/GATE-SEED`."""
    return recipe.model_copy(
        update={
            "head": recipe.head.model_copy(update={"gate": gate}),
            "training": recipe.training.model_copy(update={"seed": seed, "epochs": epochs}),
            "output": out / f"{gate}-{seed}",
        }
    )


def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the heads.")],
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Recipe they share.")] = RECIPE,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each gate: 0, 1, ...")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="A third of the shipped head's: nine take their time.")] = 2,
    gate: Annotated[list[str] | None, typer.Option(help="Only this gate; repeat it. [default: all]")] = None,
) -> None:
    """Train every gate with every seed."""
    shared = DraftRecipe.read(recipe)
    for seed in range(seeds):
        for kind in GATES:
            if gate and kind not in gate:
                continue
            chosen = variant(shared, kind, seed, epochs, out)
            if not chosen.output.exists():
                run_recipe(chosen)
            typer.echo(chosen.output)


if __name__ == "__main__":
    options.run(main)
