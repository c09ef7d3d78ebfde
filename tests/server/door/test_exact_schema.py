# SPDX-License-Identifier: Apache-2.0
"""Keywords of a schema that xgrammar would drop: said so that they hold, or refused by name."""

import json
from typing import Any

import pytest
import xgrammar

from aerie.server.refusals import BadRequest
from aerie.server.rules.exact_schema import MOST_MERGES, make_exact

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
HAS_A = {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}
HAS_B = {"properties": {"b": NUMBER}, "required": ["b"]}
TOKENS = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)])


def takes(schema: dict[str, Any], *values: object) -> list[bool]:
    """Whether each value matches the grammar that is made of the schema."""
    make_exact(schema, "schema")
    compiled = xgrammar.GrammarCompiler(TOKENS).compile_json_schema(json.dumps(schema))

    def matches(value: object) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        return bool(matcher.accept_string(json.dumps(value)) and matcher.is_terminated())

    return [matches(value) for value in values]


def copy(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    return json.loads(json.dumps(schema))


@pytest.mark.parametrize("choice", ["anyOf", "oneOf", "allOf"])
@pytest.mark.parametrize(
    ("beside", "branch", "good", "bad"),
    [
        (HAS_A, HAS_B, {"a": "x", "b": 1}, [{"a": "x"}, {"b": 1}, {"c": 1}, 1]),
        (HAS_A, {"type": "object", **HAS_B}, {"a": "x", "b": 1}, [{"a": "x"}, {"b": 1}]),
        (HAS_A, {"anyOf": [HAS_B]}, {"a": "x", "b": 1}, [{"a": "x"}, {"b": 1}]),
        ({"$defs": {"b": HAS_B}, **HAS_A}, {"$ref": "#/$defs/b"}, {"a": "x", "b": 1}, [{"a": "x"}, {"b": 1}]),
        ({"type": "array", "items": NUMBER}, {"minItems": 2}, [1, 2], [[1], ["a", "b"]]),
        (TEXT, {"maxLength": 3}, "abc", ["abcd", 1]),
        ({"type": ["string", "integer"]}, {"type": ["integer", "null"]}, 1, ["a", None]),
        ({"minimum": 2, **NUMBER}, {"minimum": 4, "maximum": 8}, 5, [3, 9]),
        ({"enum": ["a", 1]}, TEXT, "a", [1]),
        ({"enum": ["a", 1]}, {"enum": [1, 2]}, 1, ["a", 2]),
    ],
)
def test_what_stands_beside_a_choice_holds_in_its_branches(
    choice: str, beside: dict[str, Any], branch: dict[str, Any], good: object, bad: list[object]
) -> None:
    matched = takes(copy({**beside, choice: [branch]}), good, *bad)
    assert matched == [True, *[False] * len(bad)]


def test_all_of_several_hold() -> None:
    several = {"allOf": [copy(HAS_A), {"type": "object", **copy(HAS_B)}]}
    assert takes(several, {"a": "x", "b": 1}, {"a": "x"}, {"b": 1}) == [True, False, False]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"maxLength": 2}, "ab", "abc"),
        ({"pattern": "^a$"}, "a", "b"),
        ({"minimum": 2}, 3, 1),
        ({"maxItems": 1}, [1], [1, 2]),
        ({"required": ["a"]}, {"a": 1}, {}),
        ({"type": "object", "required": ["a"]}, {"a": 1, "b": 2}, {"b": 2}),
        ({"type": "object", "properties": {"b": NUMBER}, "required": ["a"]}, {"b": 1, "a": 1}, {"b": 1}),
        ({"type": "object", "minProperties": 2}, {"a": 1, "b": 1}, {"a": 1}),
        ({"type": "string", "enum": ["a", 1]}, "a", 1),
        ({"type": "integer", "enum": [1, 2]}, 2, 3),
        ({"type": "integer", "enum": [1, True]}, 1, True),
    ],
)
def test_no_keyword_is_without_effect(schema: dict[str, Any], good: object, bad: object) -> None:
    assert takes(schema, good, bad) == [True, False]


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"$defs": {"x": TEXT}, "$ref": "#/$defs/x", "maxLength": 2}, "schema.maxLength"),
        ({"enum": ["abc"], "pattern": "^x$"}, "schema.pattern"),
        ({"const": 1, "type": "string"}, "schema.const"),
        ({"type": "string", "not": {"enum": ["a"]}}, "schema.not"),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, "schema.if"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
        ({"properties": {"n": {"type": "integer", "multipleOf": 2}}}, "schema.properties.n.multipleOf"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "schema.dependentRequired"),
        ({"type": "object", "properties": {}, "required": ["b"], "additionalProperties": False}, "schema.required"),
        ({"additionalProperties": False, "anyOf": [HAS_A]}, "schema.additionalProperties"),
        ({"pattern": "^a", "anyOf": [{"pattern": "b$"}]}, "schema.pattern"),
        ({"type": "string", "anyOf": [NUMBER]}, "schema.type"),
        ({"type": "string", "anyOf": [False]}, "schema"),
        ({"minLength": 1, "anyOf": [{"maxLength": 9}] * (MOST_MERGES + 1)}, "schema"),
        ({"type": "object", "properties": ["a"]}, "schema.properties"),
        ({"type": "object", "required": 1}, "schema.required"),
        ({"type": "object", "required": [{}]}, "schema.required[0]"),
        ({"allOf": [{"minLength": 1}, {"minLength": "2"}]}, "schema.allOf[1].minLength"),
        ({"allOf": [{"enum": 1}, {"enum": [2]}]}, "schema.allOf[0].enum"),
        ({"anyOf": {"a": TEXT}}, "schema.anyOf"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_name(schema: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        make_exact(copy(schema), "schema")
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"anyOf": [TEXT, {"type": "null"}], "default": None, "title": "A"}}},
        {
            "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n", "description": "next"}}}},
            "$ref": "#/$defs/n",
        },
        {"type": "string", "enum": ["a", "b"], "description": "letters"},
        {"properties": {"not": TEXT, "if": TEXT}, "type": "object", "additionalProperties": False},
        {"allOf": [{"type": "string"}], "title": "one"},
    ],
)
def test_what_holds_already_stays(schema: dict[str, Any]) -> None:
    given = copy(schema)
    make_exact(schema, "schema")
    assert schema == given
