# SPDX-License-Identifier: Apache-2.0
"""JSON schemas that a grammar can be made of: known types, and references that lead somewhere within the schema.

A schema that breaks these passes vLLM's own checks by falling back to another compiler, and fails in the engine.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from aerie.server.refusals import BadRequest
from aerie.server.strict_json import member

TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose members are schemas by name, where `type` or `$ref` may be a name too."""
DATA = frozenset({"enum", "const", "default", "examples"})
MOST_COUNTED = 128
"""Largest count within a schema's pattern: xgrammar 0.2.8 compiles no grammar of a larger one (its pull request 864),
which vLLM notices in the engine only."""
BLOCK = MOST_COUNTED // 2
MOST_PATTERNED = BLOCK * MOST_COUNTED
"""Largest length that is said by a pattern."""
ANYTHING = r"[\s\S]"


def check_document(schema: object, path: str) -> None:
    """Hold one whole schema, which was bounded before, against its own form.

    Raises:
        BadRequest: an unknown type, or a reference that leads nowhere, out of the schema, or back to itself.
    """
    if not isinstance(schema, dict | bool):
        raise BadRequest(path, f"{path} must be an object.", "invalid_type")
    followed: set[int] = set()
    for where, node in named_nodes(schema, path):
        types = node.get("type", [])
        for name in types if isinstance(types, list) else [types]:
            if not isinstance(name, str) or name not in TYPES:
                raise BadRequest(f"{where}.type", f"{where}.type must be one of {', '.join(sorted(TYPES))}.")
        if "$ref" in node:
            _follow(schema, node, where, followed)


def bound_by_patterns(schema: object) -> None:
    """Say `minLength` and `maxLength` as a `pattern`, in place.

    Where a length is bounded, xgrammar 0.2.8 allows raw control characters in a string, which no JSON parser takes (its
    issue 800): a tab is enough, and a finished answer is of no use. With a pattern it does not. Both forms allow no
    escapes.
    """
    for _, node in named_nodes(schema, ""):
        if not {"minLength", "maxLength"} & set(node) or {"pattern", "format"} & set(node):
            continue
        low, high = node.get("minLength", 0), node.get("maxLength")
        if type(low) is not int or type(high) not in (int, type(None)):
            continue
        if not 0 <= low <= (MOST_PATTERNED if high is None else high) <= MOST_PATTERNED:
            continue
        node["pattern"] = f"^{_exactly(low)}{ANYTHING + '*' if high is None else _up_to(high - low)}$"
        node.pop("minLength", None)
        node.pop("maxLength", None)


def _exactly(length: int) -> str:
    """So many characters, in blocks, as no count may be larger than `MOST_COUNTED`."""
    blocks, rest = divmod(length, BLOCK)
    return (f"({ANYTHING}{{{BLOCK}}}){{{blocks}}}" if blocks else "") + (f"{ANYTHING}{{{rest}}}" if rest else "")


def _up_to(length: int) -> str:
    """The same for any number of characters up to `length`: the rest spans a block and more, so none is left out."""
    blocks = max(length // BLOCK - 1, 0)
    optional = f"({ANYTHING}{{{BLOCK}}}){{0,{blocks}}}" if blocks else ""
    return f"{optional}{ANYTHING}{{0,{length - blocks * BLOCK}}}"


def named_nodes(schema: object, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema, with its path."""
    if isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from named_nodes(inner, f"{path}[{index}]")
    elif isinstance(schema, dict):
        yield path, schema
        for key, inner in schema.items():
            where = member(path, key)
            if key in NAMED and isinstance(inner, dict):
                for name, named in inner.items():
                    yield from named_nodes(named, member(where, name))
            elif key not in DATA:
                yield from named_nodes(inner, where)


def _follow(document: object, node: dict[str, Any], where: str, followed: set[int]) -> None:
    """Go to the end of a chain of references, or to a node that one was `followed` from before."""
    seen: set[int] = set()
    while "$ref" in node and id(node) not in followed:
        if id(node) in seen:
            raise BadRequest(f"{where}.$ref", f"{where}.$ref leads back to itself.")
        seen.add(id(node))
        target = resolve(document, node["$ref"])
        if isinstance(target, bool):
            break
        if not isinstance(target, dict):
            raise BadRequest(f"{where}.$ref", f"{where}.$ref must lead to a schema within this one.")
        node = target
    followed |= seen


def resolve(document: object, reference: object) -> object:
    """What a JSON pointer such as `#/$defs/name` points at, or `None`."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    found = document
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(found):
            found = found[int(name[:9])]
        else:
            return None
    return found
