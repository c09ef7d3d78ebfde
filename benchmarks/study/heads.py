# SPDX-License-Identifier: Apache-2.0
"""Train many heads, a few at a time, each in a process of its own. A head that exists is not trained again."""

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aerie.artefacts import write_json
from aerie.benchmarks.errors import BenchmarkError
from aerie.trainer.draft.recipe import DraftRecipe


class StudyError(BenchmarkError):
    """A head of a study could not be trained or measured."""


def varied(recipe: DraftRecipe, output: Path, changes: Mapping[str, Any]) -> DraftRecipe:
    """The recipe with other values for dotted names such as `head.gate`, checked anew."""
    values = recipe.model_dump(mode="json") | {"output": str(output)}
    for name, value in changes.items():
        inner: dict[str, Any] = values
        *path, last = name.split(".")
        for part in path:
            inner = inner[part]
        inner[last] = value
    return DraftRecipe.model_validate(values)


def train_all(recipes: Mapping[str, DraftRecipe], jobs: int) -> None:
    """Train every head whose folder does not exist, `jobs` at a time. Raises StudyError."""
    missing = {name: recipe for name, recipe in recipes.items() if not recipe.output.exists()}
    # Answers and states are shared: the first head of each kind of data makes them.
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda item: _train(*item), missing.items()))


def _train(name: str, recipe: DraftRecipe) -> None:
    path = recipe.output.with_name(f"{recipe.output.name}.yaml")
    # JSON is YAML.
    write_json(path, recipe.model_dump(mode="json"))
    log = path.with_suffix(".log")
    command = [sys.executable, "-P", "-m", "aerie", "train", "draft", "--recipe", str(path)]
    with log.open("wb") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        raise StudyError(f"{name} was not trained (status {status}); see {log}")
    print(f"{name}: {last_entry(recipe.output)['length_K'][-1]:.3f} simulated", flush=True)


def last_entry(head: Path) -> dict[str, Any]:
    """The last entry of a trained head's curve."""
    curve: list[dict[str, Any]] = json.loads((head / "provenance.json").read_text())["curve"]
    return curve[-1]
