# SPDX-License-Identifier: Apache-2.0
"""Where a training puts its result: never over anything but its own earlier one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aerie.artefacts import OccupiedError, check_unoccupied
from aerie.trainer.recipe import RecipeError

FIX = "remove it, or choose another folder"
Record = Mapping[str, Any]


def check_output(output: Path, record: str, recipe: object, recipe_of: Callable[[Record], object]) -> None:
    """Refuse an output folder that holds anything but an earlier result of this very recipe.

    Args:
        output: the recipe's folder; nothing is written there before the training has ended.
        record: name of the JSON file in which a finished training tells its recipe and its `files`.
        recipe: this run's, as the record has it.
        recipe_of: finds the recipe in a record.

    Raises:
        RecipeError: before any work; names the option and the fix.
    """
    try:
        check_unoccupied(output, record)
    except OccupiedError as error:
        raise RecipeError(f"output: {error}") from error
    if not (output / record).is_file():
        return
    try:
        told = json.loads((output / record).read_text(encoding="utf-8"))
        same, files = recipe_of(told) == recipe, set(told["files"])
    except (ValueError, LookupError, TypeError) as error:
        raise RecipeError(f"output: {output} has a {record} of something else; {FIX}") from error
    if not same:
        raise RecipeError(f"output: {output} holds the result of another recipe; {FIX}")
    present = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    if foreign := sorted(present - files - {record}):
        raise RecipeError(f"output: {output} holds {foreign[0]}, which no training wrote; move it elsewhere")


def check_apart(output: Path, **inputs: Path | None) -> None:
    """Refuse an output folder that a run also reads or works in. Raises RecipeError."""
    for name, path in inputs.items():
        if path is not None and path.resolve().is_relative_to(output.resolve()):
            raise RecipeError(f"output: {output} is or holds `{name}` ({path}); choose another folder")
