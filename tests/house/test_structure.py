# SPDX-License-Identifier: Apache-2.0
"""docs/structure.md is the map: every folder is on it, and nothing that is not there."""

import re
from pathlib import Path

import pytest

MAP = "docs/structure.md"
ENTRY = re.compile(r"^- `([^`]+)/` +\S", re.MULTILINE)
# Operator -> its benchmark, where that is not of the same name: the parts of a step are worth what the step gains.
MEASURED_TOGETHER = dict.fromkeys(("draft_prologue", "attention_gate", "draft_head"), "draft_step")
LINK = re.compile(r"\]\((?!\w+://|#|mailto:)([^)#\s]+)")


def test_every_folder_is_on_the_map(root: Path, tracked: list[Path]) -> None:
    folders = {parent.as_posix() for path in tracked for parent in path.parents} - {"."}
    on_the_map = ENTRY.findall((root / MAP).read_text())
    assert sorted(set(on_the_map)) == sorted(on_the_map), "a folder stands twice"
    assert folders - set(on_the_map) == set(), f"add a line for each to {MAP}"
    assert set(on_the_map) - folders == set(), f"gone: take its line out of {MAP}"


def test_links_in_documents_lead_somewhere(root: Path, tracked: list[Path]) -> None:
    broken = [
        f"{path}: {target}"
        for path in tracked
        if path.suffix == ".md"
        for target in LINK.findall((root / path).read_text())
        if not (root / path.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("target", ["setup", "serve", "test", "check", "demo"])
def test_the_make_targets_exist_and_are_explained(root: Path, target: str) -> None:
    assert re.search(rf"^{target}:.*## \S", (root / "Makefile").read_text(), re.MULTILINE)
    assert f"`make {target}`" in (root / "README.md").read_text() + (root / "CONTRIBUTING.md").read_text()


def test_ci_runs_what_the_readme_says(root: Path) -> None:
    assert "make --keep-going check test" in (root / ".ci/run").read_text()
    assert "make test" in (root / "README.md").read_text()


def test_sibling_kernels_hold_the_same_files(root: Path) -> None:
    must, may = {"__init__.py", "api.py", "reference.py"}, {"kernel.py", "pack.py", "tuning.py", "tuning"}
    operators = [path for path in (root / "kernels").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert operators
    for operator in operators:
        files = {path.name for path in operator.iterdir()} - {"__pycache__"}
        assert must <= files <= must | may, operator.name
        assert list((root / "tests/kernels").glob(f"test_{operator.name}*.py")), f"no test of {operator.name}"
        benchmark = MEASURED_TOGETHER.get(operator.name, operator.name)
        assert (root / f"benchmarks/kernels/{benchmark}.py").is_file(), f"no benchmark of {operator.name}"
