# SPDX-License-Identifier: Apache-2.0
"""Loss and gradients of a plain head against speculators', on identical captured data.

Always against what speculators once computed (speculators.json); where `make oracle` was run, against what it computes
now, every entry of every gradient.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from aerie.artefacts import REPOSITORY
from aerie.benchmarks.training.agreement import Solution, gradient_difference, ours
from aerie.benchmarks.training.problem import CASES, DECAY, Case, problem_of, sampled

TOLERANCE = 1e-5
FIXTURE = Path(__file__).with_name("speculators.json")


def solved(case: Case) -> Solution:
    problem = problem_of(case)
    return ours(problem.head, problem.teacher, problem.document, case.steps, DECAY)


@pytest.fixture(scope="session")
def computed_now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the installed speculators computes: a result beside whole gradients."""
    python, folder = REPOSITORY / ".venv-oracle/bin/python", tmp_path_factory.mktemp("oracle")
    if not python.exists():
        pytest.skip("speculators is not installed: `make oracle` makes its environment")
    module, out = "aerie.benchmarks.training.oracle", folder / "now.json"
    command = [str(python), "-m", module, "--out", str(out), "--gradients", str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONSAFEPATH": "1"}, cwd=REPOSITORY)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_and_gradients_equal_what_speculators_once_computed(case: Case) -> None:
    expected: dict[str, Any] = json.loads(FIXTURE.read_text())["cases"][case.name]
    loss, gradients = solved(case)
    assert loss == pytest.approx(expected["loss"], rel=TOLERANCE)
    mine = sampled(gradients)
    assert mine.keys() == expected["gradients"].keys()
    for name, numbers in expected["gradients"].items():
        largest = float(gradients[name].abs().max())
        assert mine[name] == pytest.approx(numbers, rel=TOLERANCE, abs=TOLERANCE * largest), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_and_gradients_equal_speculators(case: Case, computed_now: Path) -> None:
    expected = json.loads((computed_now / "now.json").read_text())["cases"][case.name]
    loss, gradients = solved(case)
    assert loss == pytest.approx(expected["loss"], rel=TOLERANCE)
    theirs = load_file(computed_now / f"{case.name}.safetensors")
    assert gradient_difference(gradients, theirs) < TOLERANCE


def test_the_cases_are_decisive() -> None:
    """A gradient of zeros, or one that no case moves, would agree with anything."""
    losses = []
    for case in CASES:
        loss, gradients = solved(case)
        losses.append(loss)
        assert min(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-4
    assert len(set(losses)) == len(CASES)


def test_the_fixture_tells_its_version() -> None:
    versions = json.loads(FIXTURE.read_text())["versions"]
    assert f"speculators=={versions['speculators']} " in (REPOSITORY / "requirements/oracle.lock").read_text()
