# SPDX-License-Identifier: Apache-2.0
"""JSON schemas, said so that xgrammar 0.2.8 holds an answer to every keyword.

It drops what stands beside `$ref`, `const`, `enum`, `anyOf`, `oneOf` and `allOf`, what has no `type` beside it, and
names in `required` that are no properties; and it knows some keywords not at all. Here keywords are brought together
where that changes nothing of the meaning, and a keyword that would still have no effect is refused by name.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aerie.server.refusals import BadRequest
from aerie.server.rules.json_schema import named_nodes, resolve

Schema = dict[str, Any]
FAMILIES: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"}),
    "object": frozenset(
        {
            *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
            *("minProperties", "maxProperties", "unevaluatedProperties"),
        }
    ),
}
"""Keywords by the type of values that they are about."""
WITHOUT_EFFECT = (
    *("not", "if", "multipleOf", "uniqueItems", "contains", "dependentRequired", "dependentSchemas", "dependencies"),
    "$dynamicRef",
)
CHOICES = ("anyOf", "oneOf", "allOf")
ASSERTIONS = frozenset({"type", "enum", "const", "$ref", *CHOICES, *WITHOUT_EFFECT}).union(*FAMILIES.values())
"""Keywords that restrict; every other one only annotates."""
MOST_MERGES = 64
"""Branches of one schema that siblings are brought into."""
LOWER = frozenset({"minLength", "minimum", "exclusiveMinimum", "minItems", "minProperties"})
UPPER = frozenset({"maxLength", "maximum", "exclusiveMaximum", "maxItems", "maxProperties"})
FORMS: Mapping[str, tuple[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("properties", "patternProperties"), ("an object", dict)),
    **dict.fromkeys(("required", "enum", *CHOICES), ("a list", list)),
    **dict.fromkeys((*LOWER, *UPPER), ("a number", (int, float))),
}
"""What the keywords that are brought together must be."""
PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def make_exact(document: object, path: str) -> None:
    """Rewrite a checked schema in place.

    Raises:
        BadRequest: a keyword that would have no effect, or is of another type than it must be.
    """
    for where, node in named_nodes(document, path):
        _check_forms(node, where)
    seen: set[int] = set()
    merges = 0

    def merged(schemas: Iterable[object], where: str) -> Schema:
        nonlocal merges
        merges += 1
        if merges > MOST_MERGES:
            raise BadRequest(where, f"{path} has more than {MOST_MERGES} branches beside other keywords.")
        return _merged((_followed(document, schema, where) for schema in schemas), where)

    for where, node in named_nodes(document, path):
        if id(node) not in seen:
            seen.add(id(node))
            _refuse_unknown(node, where)
            _merge_siblings(node, where, merged)
            _restrict_values(node, where)
            _say_type(node)
            _say_implied(node)
            _say_required(node, where)


def _check_forms(node: Schema, where: str) -> None:
    for key, (form, types) in FORMS.items():
        if key in node and not isinstance(node[key], types):
            raise BadRequest(f"{where}.{key}", f"{where}.{key} must be {form}.", "invalid_type")
    for index, name in enumerate(node.get("required", ())):
        if not isinstance(name, str):
            raise BadRequest(
                f"{where}.required[{index}]", f"{where}.required[{index}] must be a string.", "invalid_type"
            )


def _refuse_unknown(node: Schema, where: str) -> None:
    for key in WITHOUT_EFFECT:
        if node.get(key):
            raise BadRequest(f"{where}.{key}", f"{where}.{key} is not supported: it would have no effect.")


def _merge_siblings(node: Schema, where: str, merged: Callable[[Iterable[object], str], Schema]) -> None:
    """Bring what stands beside a choice into its branches, as often as one of them is a choice again."""
    while present := [key for key in CHOICES if isinstance(node.get(key), list)]:
        key = present[0]
        branches = node.pop(key)
        beside = {name: node.pop(name) for name in sorted(ASSERTIONS & set(node))}
        if key != "allOf":
            plain = not beside
            node["anyOf"] = branches if plain else [merged([beside, branch], where) for branch in branches]
            return
        node |= merged([*([beside] if beside else []), *branches], where) if beside or len(branches) > 1 else {}
        if not beside and len(branches) == 1:
            node["allOf"] = branches
            return
    if "$ref" in node and (dropped := sorted(ASSERTIONS & set(node) - {"$ref"})):
        raise _no_effect(f"{where}.{dropped[0]}", "$ref")


def _followed(document: object, schema: object, where: str) -> Schema:
    """A branch as keywords: what it refers to, if it does nothing else."""
    if schema is True:
        return {}
    while isinstance(schema, dict) and "$ref" in schema and not ASSERTIONS & set(schema) - {"$ref"}:
        schema = resolve(document, schema["$ref"])
    if not isinstance(schema, dict):
        raise BadRequest(where, f"{where} has a branch that nothing can match.")
    return {key: value for key, value in schema.items() if key in ASSERTIONS}


def _merged(schemas: Iterable[Schema], where: str) -> Schema:
    """One schema for values that match all of these.

    Raises:
        BadRequest: two of them say one keyword in ways that cannot be brought together.
    """
    result: Schema = {}
    for schema in schemas:
        _check_apart(result, schema, where)
        for key, value in schema.items():
            result[key] = value if key not in result or result[key] == value else _both(key, result[key], value, where)
    return result


def _check_apart(one: Schema, other: Schema, where: str) -> None:
    """Some keywords speak of the properties or items that their own schema does not name."""
    for left, right in ((one, other), (other, one)):
        names = set(right.get("properties", ())) - set(left.get("properties", ()))
        for key in ("additionalProperties", "unevaluatedProperties", "patternProperties"):
            if names and left.get(key, True) is not True and left.get(key) != right.get(key):
                raise _no_effect(f"{where}.{key}", "the properties of another branch")
        if "items" in left and "prefixItems" in right and left != right:
            raise _no_effect(f"{where}.items", "prefixItems of another branch")


def _both(key: str, one: Any, other: Any, where: str) -> Any:  # noqa: ANN401 - a keyword's value
    if key in LOWER:
        return max(one, other)
    if key in UPPER:
        return min(one, other)
    if key == "required":
        return list(dict.fromkeys([*one, *other]))
    if key == "type" and (types := _types(one) & _types(other)):
        return sorted(types) if len(types) > 1 else next(iter(types))
    if key == "enum" and (values := [value for value in one if value in other]):
        return values
    if key == "properties" and all(one[name] == other[name] for name in set(one) & set(other)):
        return {**one, **other}
    raise BadRequest(f"{where}.{key}", f"{where}.{key} is said twice, and the two cannot be brought together.")


def _types(value: object) -> set[str]:
    types = set(value if isinstance(value, list) else [value])
    return types | {"integer"} if "number" in types else types


def _restrict_values(node: Schema, where: str) -> None:
    """Values of another type leave an `enum`; further keywords beside it would have no effect."""
    key = next((key for key in ("const", "enum") if key in node), None)
    if key is None or (key == "enum" and not isinstance(node["enum"], list)):
        return
    types = _types(node["type"]) if "type" in node else set(PYTHON_TYPES)
    values = node["enum"] if key == "enum" else [node["const"]]
    kept = [value for value in values if _is_of(value, types)]
    family = {name for name, keywords in FAMILIES.items() if any(_is_of(value, {name}) for value in kept)}
    beside = set(node) & frozenset({"enum"} - {key}).union(*(FAMILIES[name] for name in family))
    if beside:
        raise _no_effect(f"{where}.{min(beside)}", key)
    if not kept:
        raise BadRequest(f"{where}.{key}", f"{where}.{key} has no value of {where}.type.")
    if key == "enum":
        node["enum"] = kept


def _is_of(value: object, types: set[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return True
    return any(isinstance(value, PYTHON_TYPES[name]) for name in types if name != "boolean")


def _say_type(node: Schema) -> None:
    """Of what has no type, as of `{"maxLength": 3}`, xgrammar takes anything; values of other types are left out."""
    if {"type", "enum", "const", "$ref", "anyOf", "allOf"} & set(node):
        return
    types = [name for name, keywords in FAMILIES.items() if keywords & set(node)]
    if types:
        node["type"] = types if len(types) > 1 else types[0]


def _say_implied(node: Schema) -> None:
    """Without them, a count allows nothing to be counted."""
    if {"required", "minProperties", "maxProperties"} & set(node) and not {"properties", "patternProperties"} & set(
        node
    ):
        node.setdefault("additionalProperties", True)
    if {"minItems", "maxItems"} & set(node) and "prefixItems" not in node:
        node.setdefault("items", True)


def _say_required(node: Schema, where: str) -> None:
    """A required name becomes a property, as another is not looked at."""
    if "object" not in _types(node.get("type")):
        return
    others = node.get("additionalProperties", True)
    for name in node.get("required", ()):
        properties = node.get("properties", {})
        if name in properties or "patternProperties" in node:
            continue
        if others is False:
            raise BadRequest(f"{where}.required", f"{where}.required names {name[:64]!r}, which is not allowed.")
        node["properties"] = {**properties, name: others}


def _no_effect(keyword: str, beside: str) -> BadRequest:
    return BadRequest(keyword, f"{keyword} would have no effect beside {beside}; say both in one schema.")
