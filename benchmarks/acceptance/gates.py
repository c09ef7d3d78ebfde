# SPDX-License-Identifier: Apache-2.0
"""Does the gate pay? Acceptance of trained heads with an element-wise gate, a head-wise gate and none, over seeds.

`python -m aerie.benchmarks.acceptance.gates HEAD... --out FILE`, after `gate_heads` or `study.gates` trained them. The
kind of gate is read from each head; heads that were not trained alike are refused. Figures: `acceptance_length_gated`,
`_headwise`, `_plain`: means over seeds, with `_std` and `_seeds`.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.study.gates import TEMPERATURES, counts
from aerie.benchmarks.study.measure import Job, measure_all
from aerie.draft_models.acceptance import AcceptanceError
from aerie.draft_models.checkpoint import verify_draft
from aerie.draft_models.contract import DraftConfig, GateKind
from aerie.draft_models.measure import Acceptance

NAME = "acceptance.gates"
FIGURE: dict[GateKind, str] = {"elementwise": "gated", "headwise": "headwise", "none": "plain"}


def gate_of(head: Path) -> GateKind:
    """The gate that a head's config.json declares."""
    return DraftConfig.from_hf(json.loads((head / "config.json").read_text())).gate


def figures_by_gate(lengths: Mapping[GateKind, Sequence[float]]) -> dict[str, float]:
    """Mean, sample standard deviation and number of seeds for each kind; no spread is claimed from a single seed."""
    figures: dict[str, float] = {}
    for gate, name in FIGURE.items():
        values = lengths.get(gate, [])
        if values:
            figures[f"acceptance_length_{name}"] = round(statistics.fmean(values), 4)
            figures[f"acceptance_length_{name}_seeds"] = len(values)
        if len(values) > 1:
            figures[f"acceptance_length_{name}_std"] = round(statistics.stdev(values), 4)
    return figures


def training_of(head: Path) -> dict[str, JsonValue]:
    """How a head was trained, from its provenance; empty for a head of another maker."""
    path = head / "provenance.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {name: found.get(name) for name in ("commit", "arguments", "seeds", "inputs")} if found else {}


def check_trained_alike(trainings: Mapping[str, Mapping[str, Any]]) -> None:
    """Heads may differ in gate, seed and where they were written; in nothing else. Raises AcceptanceError."""
    (first, reference), *others = ((name, _compared(training)) for name, training in trainings.items())
    for name, compared in others:
        if different := sorted(
            key for key in reference.keys() | compared.keys() if reference.get(key) != compared.get(key)
        ):
            raise AcceptanceError(f"{name} and {first} were not trained alike: {', '.join(different)} differ")


def _compared(training: Mapping[str, Any]) -> dict[str, Any]:
    recipe = training.get("arguments") or {}
    varied = {"head": "gate", "training": "seed"}
    kept = {
        name: {key: item for key, item in value.items() if key != varied[name]} if name in varied else value
        for name, value in recipe.items()
        if name != "output"
    }
    return {**kept, "inputs": training.get("inputs")}


def _raw(head: Path, gate: GateKind, acceptance: Acceptance) -> dict[str, JsonValue]:
    return {"head": head.name, "gate": gate, **acceptance.figures(), **counts(acceptance), "trained": training_of(head)}


def main(
    heads: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Trained heads.")],
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    draft_tokens: options.DraftTokens = 4,
    count: options.Count = 64,
    max_tokens: options.MaxTokens = 256,
    seed: options.Seed = 0,
    work: Annotated[Path, typer.Option(file_okay=False, help="Measurements, kept.")] = Path("runs/gate-heads/measured"),
    jobs: Annotated[int, typer.Option(min=1, help="Engines side by side.")] = 2,
) -> None:
    """Compare heads that were trained alike but for their gate."""
    arguments = options.recorded(locals())
    for path in heads:
        verify_draft(path, model)
    check_trained_alike({path.name: training_of(path) for path in heads})
    asked = [
        Job(
            target=model,
            head=path,
            draft_tokens=draft_tokens,
            temperatures=TEMPERATURES,
            prompts=count,
            max_tokens=max_tokens,
            seed=seed,
        )
        for path in heads
    ]
    lengths, runs = defaultdict[GateKind, list[float]](list), []
    for path, measured in zip(heads, measure_all(asked, work, jobs), strict=True):
        gate, greedy = gate_of(path), measured[0.0]
        lengths[gate].append(greedy.pooled.length)
        runs.append(Run(benchmark=NAME, measured=_raw(path, gate, greedy)))
    inputs = options.inputs(model=model, **{f"head/{path.name}": path for path in heads})
    figures = figures_by_gate(lengths)
    ResultFile(provenance=Provenance.now(arguments, [seed], inputs), runs=runs, figures=figures).write(out)
    options.show(figures)


if __name__ == "__main__":
    options.run(main)
