# SPDX-License-Identifier: Apache-2.0
"""Does the gate pay? {none, head-wise, element-wise} x {EAGLE-3.1's norms off, on}, over seeds, in the engine.

`python -m aerie.benchmarks.study.gates --out benchmarks/results/draft-gate-study.json`. Nothing but the gate, its
learning rate, the norms and the seed differs between two heads: same answers, same captured states, same order of
batches, and tensors that two heads have in common start equal. The question is the paper's (arXiv 2602.06570, Fig. 10:
+9.9 % acceptance length).

Figures: `tau_{plain,headwise,elementwise}` (K = 4, temperature 0, norms off: mean over seeds, with `_std`),
`gain_elementwise` = tau_elementwise / tau_plain - 1 (with `_std` over seeds, paired), and the same names with
`_norms` for the heads with norms, `_k7`, `_t1` for the other points.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from aerie.artefacts import REPOSITORY
from aerie.benchmarks import options
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.study.heads import last_entry, train_all, varied
from aerie.benchmarks.study.measure import Job, Measured, measure_all
from aerie.draft_models.contract import GateKind
from aerie.draft_models.measure import Acceptance
from aerie.trainer.draft.recipe import DraftRecipe

NAME = "study.gates"
GATES: dict[GateKind, str] = {"none": "plain", "headwise": "headwise", "elementwise": "elementwise"}
# Multiples of the head's learning rate, each kind's best of benchmarks/study/rates.py.
RATES: dict[GateKind, float] = {"none": 1.0, "headwise": 1.0, "elementwise": 4.0}
NORMS = {False: "", True: "_norms"}
DRAFTED = (4, 7)
TEMPERATURES = (0.0, 1.0)

Lengths = dict[str, list[float]]
"""Name of a figure to its value for each seed."""


def heads(recipe: DraftRecipe, seeds: int, work: Path) -> dict[tuple[GateKind, bool, int], DraftRecipe]:
    """The recipe of every head, by gate, norms and seed."""
    found = {}
    for seed in range(seeds):
        for norms in NORMS:
            for gate in GATES:
                changes = {
                    "head.gate": gate, "head.fc_norm": norms, "head.norm_output": norms, "training.seed": seed,
                    "training.gate_learning_rate": RATES[gate],
                }  # fmt: skip
                found[gate, norms, seed] = varied(recipe, work / f"{gate}{NORMS[norms]}-{seed}", changes)
    return found


def figures(lengths: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means and spreads over seeds, and what each gate gains over none in the same place."""
    found: dict[str, float] = {}
    for name, values in lengths.items():
        found |= summary(f"tau_{name}", values)
        gate, _, where = name.partition("_")
        plain = lengths.get(f"plain_{where}".rstrip("_"))
        if gate != "plain" and plain is not None:
            gains = [one / other - 1 for one, other in zip(values, plain, strict=True)]
            found |= summary(f"gain_{name}", gains)
    return found


def summary(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation; no spread is claimed from a single value."""
    spread = {f"{name}_std": round(statistics.stdev(values), 4)} if len(values) > 1 else {}
    return {name: round(statistics.fmean(values), 4), **spread}


def place(gate: GateKind, norms: bool, draft_tokens: int, temperature: float) -> str:
    """The figure's name without its prefix; K = 4 and temperature 0 go unsaid."""
    more = ("" if draft_tokens == DRAFTED[0] else f"_k{draft_tokens}") + ("" if temperature == 0 else "_t1")
    return f"{GATES[gate]}{NORMS[norms]}{more}"


def main(
    out: options.Out,
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Recipe that the heads share.")] = (
        REPOSITORY / "trainer/recipes/clinic-gate-study.yaml"
    ),
    work: Annotated[Path, typer.Option(file_okay=False, help="Heads and measurements.")] = Path("runs/gate-study"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each kind of head: 0, 1, ...")] = 3,
    count: options.Count = 64,
    max_tokens: options.MaxTokens = 256,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings, then engines, side by side.")] = 2,
) -> None:
    """Train the heads, measure each at K = 4 and 7 and temperatures 0 and 1, write the result."""
    arguments = options.recorded(locals())
    shared = DraftRecipe.read(recipe)
    recipes = heads(shared, seeds, work)
    train_all({one.output.name: one for one in recipes.values()}, jobs)
    asked = [
        Job(target=shared.target, head=one.output, draft_tokens=drafted, temperatures=TEMPERATURES, prompts=count,
            max_tokens=max_tokens, seed=0)
        for one in recipes.values() for drafted in DRAFTED
    ]  # fmt: skip
    measured = measure_all(asked, work / "measured", jobs)
    lengths, runs = Lengths(), list[Run]()
    points = [(key, drafted) for key in recipes for drafted in DRAFTED]
    for ((gate, norms, seed), drafted), one in zip(points, measured, strict=True):
        runs.append(run_of(gate, norms, seed, drafted, one, recipes[gate, norms, seed].output))
        for temperature, acceptance in one.items():
            lengths.setdefault(place(gate, norms, drafted, temperature), []).append(acceptance.pooled.length)
    inputs = options.inputs(model=shared.target, recipe=recipe)
    found = figures(lengths)
    ResultFile(provenance=Provenance.now(arguments, list(range(seeds)), inputs), runs=runs, figures=found).write(out)
    options.show(found)


def run_of(gate: GateKind, norms: bool, seed: int, drafted: int, measured: Measured, head: Path) -> Run:
    """One head at one K: its counts, and how far the trainer's own simulation was from them."""
    raw = {f"temperature_{temperature:g}": counts(acceptance) for temperature, acceptance in measured.items()}
    simulated = last_entry(head)["length_K"]
    return Run(
        benchmark=NAME,
        measured={
            "gate": gate, "norms": norms, "seed": seed, "draft_tokens": drafted,
            "simulated_length_K": simulated, **raw,
        },
    )  # fmt: skip


def counts(acceptance: Acceptance) -> dict[str, JsonValue]:
    """What was counted, pooled over requests."""
    return {name: value for name, value in acceptance.raw().items() if name != "histogram_by_request"}


if __name__ == "__main__":
    options.run(main)
