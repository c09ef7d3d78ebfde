# SPDX-License-Identifier: Apache-2.0
"""Does the gate pay? Acceptance of trained heads with an element-wise gate, a head-wise gate and none, over seeds.

`python -m aerie.benchmarks.acceptance.gates --head DIR --head DIR ... --out FILE`. The kind of gate is read from each
head. Figures: `acceptance_length_gated`, `_headwise`, `_plain`: means over seeds, with `_std` and `_seeds`.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.acceptance.evaluate import Acceptance, evaluate
from aerie.benchmarks.engine import EngineOptions, offline_engine
from aerie.benchmarks.prompts import held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.checkpoint import verify_draft
from aerie.draft_models.contract import DraftConfig, GateKind

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


def _raw(head: Path, gate: GateKind, acceptance: Acceptance) -> dict[str, JsonValue]:
    path = head / "provenance.json"
    trained: JsonValue = json.loads(path.read_text()) if path.exists() else None
    return {"head": head.name, "gate": gate, **acceptance.figures(), **acceptance.raw(), "trained": trained}


def main(
    out: options.Out,
    head: Annotated[list[Path], typer.Option(exists=True, file_okay=False, help="A trained head; repeat it.")],
    model: options.Model = options.DEMO_MODEL,
    draft_tokens: options.DraftTokens = 4,
    count: options.Count = 64,
    max_tokens: options.MaxTokens = 256,
    seed: options.Seed = 0,
    prompts: options.Prompts = None,
) -> None:
    """Compare heads that were trained alike but for their gate."""
    arguments = options.recorded(locals())
    for path in head:
        verify_draft(path, model)
    rendered = render(model, held_out(count, seed, prompts))
    lengths, runs = defaultdict[GateKind, list[float]](list), []
    for path in head:
        gate = gate_of(path)
        with offline_engine(EngineOptions(model=model, draft=path, draft_tokens=draft_tokens, seed=seed)) as engine:
            acceptance = evaluate(engine, rendered, max_tokens)
        typer.echo(f"{path.name}: {gate}, mean acceptance length {acceptance.pooled.length:.3f}")
        lengths[gate].append(acceptance.pooled.length)
        runs.append(Run(benchmark=NAME, measured=_raw(path, gate, acceptance)))
    heads = {f"head/{path.name}": path for path in head}
    inputs = options.inputs(model=model, prompts=prompts, **heads)
    figures = figures_by_gate(lengths)
    ResultFile(provenance=Provenance.now(arguments, [seed], inputs), runs=runs, figures=figures).write(out)
    options.show(figures)


if __name__ == "__main__":
    options.run(main)
