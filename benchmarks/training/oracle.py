# SPDX-License-Identifier: Apache-2.0
"""What speculators computes for the problems of problem.py, for tests/trainer/draft/test_speculators.py.

`.venv-oracle/bin/python -m aerie.benchmarks.training.oracle --out tests/trainer/draft/speculators.json`
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from aerie.artefacts import write_json
from aerie.benchmarks import options
from aerie.benchmarks.training import peer
from aerie.benchmarks.training.problem import CASES, DECAY, Case, problem_of, sampled


def solve(case: Case) -> tuple[float, dict[str, Tensor]]:
    """Cross-entropy and gradients of a case, under our names."""
    problem = problem_of(case)
    return peer.solve(problem.head, problem.teacher, problem.document, case.steps, DECAY)


def main(
    out: options.Out,
    gradients: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for whole gradients, too.")] = None,
) -> None:
    """Compute every case with speculators."""
    torch.set_num_threads(1)
    cases: dict[str, object] = {}
    for case in CASES:
        loss, found = solve(case)
        cases[case.name] = {"loss": loss, "gradients": sampled(found)}
        if gradients is not None:
            gradients.mkdir(parents=True, exist_ok=True)
            save_file(found, gradients / f"{case.name}.safetensors")
    versions = {name: version(name) for name in ("speculators", "transformers", "torch")}
    write_json(out, {"versions": versions, "cases": cases})


if __name__ == "__main__":
    options.run(main)
