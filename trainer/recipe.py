# SPDX-License-Identifier: Apache-2.0
"""What all recipes share: a frozen schema that refuses what it does not know, and one way to read it from YAML."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from aerie.quant.errors import QuantError
from aerie.quant.recipe_file import read_recipe
from aerie.trainer.errors import TrainerError


class RecipeError(TrainerError, ValueError):
    """A recipe that cannot be obeyed; the text names the option and the fix."""


class Schema(BaseModel):
    """Frozen, and refuses what it does not know."""

    # Reference tables are made of the fields' docstrings.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read YAML; relative paths in it are taken from the working directory. Raises RecipeError."""
        try:
            return read_recipe(cls, path)
        except QuantError as error:
            raise RecipeError(str(error)) from error
