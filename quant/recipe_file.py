# SPDX-License-Identifier: Apache-2.0
"""A recipe file against its schema: one way to read YAML, and errors that name the key and what could stand there."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from aerie.quant.errors import QuantError

Recipe = TypeVar("Recipe", bound=BaseModel)


def read_recipe(schema: type[Recipe], path: Path) -> Recipe:
    """Read and validate; an empty file takes every default.

    Raises:
        QuantError: the file cannot be read, is not YAML, or does not follow the schema; every fault by its key.
    """
    try:
        return schema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise QuantError(f"--recipe {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise QuantError(f"--recipe {path}: is not YAML ({error})") from error
    except ValidationError as error:
        faults = "; ".join(_fault(schema, fault["loc"], fault["type"], fault["msg"]) for fault in error.errors())
        raise QuantError(f"--recipe {path}: {faults}") from error


def _fault(schema: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str) -> str:
    option = ".".join(map(str, location)) or "recipe"
    if kind != "extra_forbidden":
        return f"{option}: {message}"
    keys = sorted({name for model in _models_at(schema, location[:-1]) for name in model.model_fields})
    close = difflib.get_close_matches(str(location[-1]), keys, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{option}: is no option; {hint}The options here are {', '.join(keys)}"


def _models_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The models that an object at a pydantic location may be."""
    models = [schema]
    for part in location:
        annotations = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if annotations:
            models = [model for annotation in annotations for model in _models_in(annotation)]
        else:  # the tag of a union, or a place in a list
            models = [model for model in models if part in _tags(model)] or models
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 -- any annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _tags(model: type[BaseModel]) -> set[object]:
    """Values of fields that are one literal, by which a union tells its members."""
    literals = [field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal]
    return {get_args(literal)[0] for literal in literals if len(get_args(literal)) == 1}
