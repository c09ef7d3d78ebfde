# SPDX-License-Identifier: Apache-2.0
"""What all recipes share: a frozen schema that refuses what it does not know, and one way to read it from YAML."""

from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

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
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise RecipeError(f"--recipe {path}: cannot be read ({error.strerror})") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"--recipe {path}: is not YAML ({error})") from error
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise RecipeError(f"--recipe {path}: {faults}") from error
