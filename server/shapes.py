# SPDX-License-Identifier: Apache-2.0
"""What fields a request may have and of what type, read off the pydantic models that vLLM parses it with.

Those models accept unknown fields in silence and turn "1", 1.0 and true into integers. A `Shape` is what a model's
annotations say, without either: the union of everything a union allows, one level at a time, as far as a body goes.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import typing_extensions
from pydantic import BaseModel

from aerie.server.refusals import BadRequest
from aerie.server.strict_json import member

JSON_KINDS: Mapping[type, frozenset[type]] = {
    bool: frozenset({bool}),
    int: frozenset({int}),
    float: frozenset({int, float}),
    str: frozenset({str}),
    bytes: frozenset({str}),
}
KIND_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
QUALIFIERS = (typing.Required, typing.NotRequired, typing_extensions.Required, typing_extensions.NotRequired)


class Shape:
    """Everything that the annotations of one place allow."""

    def __init__(self, annotations: Iterable[object], shapes: "Shapes") -> None:
        self._shapes = shapes
        self.kinds: set[type] = set()
        self.models: list[type] = []
        self.items_of: list[object] = []
        self.values_of: list[object] = []
        self.open = False
        self.nullable = False
        for annotation in annotations:
            self._add(annotation)

    def _add(self, annotation: object) -> None:
        origin = typing.get_origin(annotation)
        if isinstance(annotation, type) and annotation in JSON_KINDS:
            self.kinds |= JSON_KINDS[annotation]
        elif annotation is None or annotation is types.NoneType:
            self.nullable = True
        elif origin is typing.Literal:
            kinds = {type(value) for value in typing.get_args(annotation)}
            self.kinds |= kinds - {types.NoneType}
            self.nullable |= types.NoneType in kinds
        elif origin in (list, tuple, set, frozenset) or _is_iterable(origin):
            self.kinds.add(list)
            self.items_of += typing.get_args(annotation)[:1]
        elif origin is dict or _is_mapping(origin):
            self.kinds.add(dict)
            self.values_of += typing.get_args(annotation)[1:]
        elif isinstance(annotation, type) and _is_model(annotation):
            self.kinds.add(dict)
            self.models.append(annotation)
        else:
            self.open = True

    @cached_property
    def fields(self) -> Mapping[str, "Shape"]:
        """The members of the objects that are models."""
        found: dict[str, list[object]] = {}
        for model in self.models:
            for name, annotation in _members(model):
                found.setdefault(name, []).append(annotation)
        return {name: self._shapes.of(*annotations) for name, annotations in found.items()}

    @cached_property
    def items(self) -> "Shape":
        """What a list holds."""
        return self._shapes.of(*(self.items_of or [Any]))

    @cached_property
    def values(self) -> "Shape":
        """What an object holds that is no model, under whatever key."""
        return self._shapes.of(*(self.values_of or [Any]))


class Shapes:
    """Shapes by what they were made from: recursive models end in themselves, and requests cannot add to them."""

    def __init__(self) -> None:
        self._made: dict[frozenset[object], Shape] = {}

    def of(self, *annotations: object) -> Shape:
        """The shape of a place with any of these annotations."""
        flat = list(_flatten(annotations))
        key = frozenset(map(_identity, flat))
        if key not in self._made:
            self._made[key] = Shape(flat, self)
        return self._made[key]


def check_shape(value: object, shape: Shape, path: str, ignores: Callable[[dict[str, Any], str], bool | None]) -> None:
    """Hold a value against its shape, and leave out fields that are null where null is no value of theirs.

    `ignores(object, key)` decides about a field that no model has: left out (True), kept (None) or refused (False).

    Raises:
        BadRequest: a field that no model has, or a value of another type than the field's.
    """
    if value is None or shape.open:
        return
    if type(value) not in shape.kinds:
        wanted = {KIND_NAMES[kind] for kind in shape.kinds if kind in KIND_NAMES}
        if float in shape.kinds:
            wanted.discard(KIND_NAMES[int])
        raise BadRequest(path, f"{path} must be {' or '.join(sorted(wanted))}.", "invalid_type")
    if isinstance(value, list):
        if shape.items.kinds == {int} and all(type(item) is int for item in value):
            return
        for index, item in enumerate(value):
            check_shape(item, shape.items, f"{path}[{index}]", ignores)
    elif isinstance(value, dict):
        for key, inner in list(value.items()):
            where = member(path, key)
            if (field := shape.fields.get(key)) is not None:
                if inner is None and not field.nullable and not field.open:
                    del value[key]
                check_shape(inner, field, where, ignores)
            elif shape.values_of or not shape.models:
                check_shape(inner, shape.values, where, ignores)
            elif (ignored := ignores(value, key)) is False:
                raise _unknown_field(key, where, shape)
            elif ignored:
                del value[key]


def _unknown_field(key: str, where: str, shape: Shape) -> BadRequest:
    close = difflib.get_close_matches(key[:64], shape.fields, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return BadRequest(where, f"{where} is no field of this route{hint}", "unknown_parameter")


def _flatten(annotations: Iterable[object]) -> Iterator[object]:
    for annotation in annotations:
        origin = typing.get_origin(annotation)
        if origin in (typing.Union, types.UnionType):
            yield from _flatten(typing.get_args(annotation))
        elif origin is typing.Annotated or origin in QUALIFIERS:
            yield from _flatten(typing.get_args(annotation)[:1])
        elif isinstance(annotation, typing_extensions.TypeAliasType):
            yield from _flatten([annotation.__value__])
        else:
            yield annotation


def _identity(annotation: object) -> object:
    """What tells annotations apart; those that hold a pydantic FieldInfo have no hash."""
    try:
        hash(annotation)
    except TypeError:
        return repr(annotation)
    return annotation


def _is_model(annotation: type) -> bool:
    return (
        issubclass(annotation, BaseModel)
        or typing_extensions.is_typeddict(annotation)
        or dataclasses.is_dataclass(annotation)
    )


def _is_iterable(origin: object) -> bool:
    return isinstance(origin, type) and issubclass(origin, Iterable) and not _is_mapping(origin)


def _is_mapping(origin: object) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _members(model: type) -> Iterator[tuple[str, object]]:
    """Names, aliases among them, and annotations of a model's fields."""
    if issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            for known in {name, field.alias, field.validation_alias}:
                if isinstance(known, str):
                    yield known, field.annotation
        return
    hints = typing_extensions.get_type_hints(model, include_extras=True)
    if dataclasses.is_dataclass(model):
        yield from ((field.name, hints[field.name]) for field in dataclasses.fields(model) if field.init)
    else:
        yield from hints.items()
