# SPDX-License-Identifier: Apache-2.0
"""Lengths and whitespace in schemas, of answers and of tools' calls."""

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import xgrammar
from vllm.sampling_params import StructuredOutputsParams

from aerie.server.grammars.constraints import final
from aerie.server.refusals import BadRequest
from aerie.server.rules.facts import Facts
from aerie.server.rules.json_schema import bound_by_patterns

CHAT = "/v1/chat/completions"
TURN = {"role": "user", "content": "Good morning."}
BOUNDS: list[dict[str, int]] = [
    {"maxLength": 0},
    {"maxLength": 8},
    {"minLength": 2},
    {"minLength": 64, "maxLength": 64},
    {"minLength": 3, "maxLength": 130},
    {"minLength": 70, "maxLength": 319},
    {"maxLength": 1000},
]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_the_pattern_has_these_lengths_and_no_others(bounds: dict[str, int]) -> None:
    schema: dict[str, Any] = {"type": "string", **bounds}
    bound_by_patterns(schema)
    assert set(schema) == {"type", "pattern"}
    low, high = bounds.get("minLength", 0), bounds.get("maxLength", 2000)
    matching = [length for length in range(1100) if re.search(schema["pattern"], "x" * length)]
    assert matching == [length for length in range(1100) if low <= length <= high]


@pytest.mark.parametrize("bounds", BOUNDS[:6])
def test_the_compiler_keeps_the_lengths_and_takes_no_control_characters(bounds: dict[str, int]) -> None:
    schema: dict[str, Any] = {"type": "string", **bounds}
    bound_by_patterns(schema)
    tokens = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)])
    compiled = xgrammar.GrammarCompiler(tokens).compile_json_schema(json.dumps(schema))

    def takes(text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        return bool(matcher.accept_string(f'"{text}"')) and bool(matcher.is_terminated())

    low, high = bounds.get("minLength", 0), bounds.get("maxLength", 200)
    for length in {0, low - 1, low, (low + high) // 2, high, high + 1} - {-1}:
        assert takes("é" * length) == (low <= length <= bounds.get("maxLength", length))
    for control in ("\t", "\n", "\x00", "\x1f"):
        assert not takes("x" * (low or 1) + control)
        assert not takes(control)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 8193},
        {"type": "string", "maxLength": 8, "pattern": "^x"},
        {"type": "string", "maxLength": 8, "format": "date"},
        {"type": "string", "minLength": 8, "maxLength": 7},
        {"type": "string", "maxLength": 8.0},
        {"type": "object", "properties": {"maxLength": {"type": "integer"}}},
        {"enum": [{"maxLength": 8}]},
    ],
)
def test_the_rest_is_left_alone(schema: dict[str, Any]) -> None:
    kept = json.loads(json.dumps(schema))
    bound_by_patterns(schema)
    assert schema == kept


async def test_schemas_of_answers_keep_their_lengths(
    client: Callable[..., httpx.AsyncClient], facts: Callable[..., Facts]
) -> None:
    """The engine keeps control characters out of answers that are JSON as a whole."""
    text = {"type": "string", "maxLength": 10_000}
    bounded = {"type": "object", "properties": {"a": {"type": "array", "items": text}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": bounded}}
    async with client(facts=facts()) as http:
        for given in (bounded, json.dumps(bounded)):
            body = {"messages": [TURN], "structured_outputs": {"json": given}}
            assert (await http.post(CHAT, json=body)).json()["body"]["structured_outputs"]["json"] == bounded
        kept = {"messages": [TURN], "tools": [tool]}
        assert (await http.post(CHAT, json=kept)).json()["body"] == kept


@pytest.mark.parametrize("whitespace", [False, True])
def test_schemas_of_tools_calls_say_lengths_as_patterns_and_bound_whitespace(*, whitespace: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 8}}}
    content: dict[str, Any] = {"type": "json_schema", "json_schema": schema}
    tag = {
        "format": {
            "type": "triggered_tags",
            "triggers": ["<call>"],
            "tags": [{"type": "tag", "begin": "<call>", "content": content, "end": "</call>"}],
        },
        "type": "structural_tag",
    }
    held = StructuredOutputsParams(structural_tag=json.dumps(tag))
    constraint = final(held, "tools", whitespace=whitespace)
    assert constraint is not None
    assert (constraint.path, constraint.kind, constraint.text) == ("tools", "tag", held.structural_tag)
    prepared = json.loads(constraint.text)["format"]["tags"][0]["content"]
    assert prepared["json_schema"]["properties"]["a"]["pattern"] == r"^[\s\S]{0,8}$"
    assert prepared.get("max_whitespace_cnt") == (None if whitespace else 1)


@pytest.mark.parametrize("schema", [{"type": "string", "not": {}, "if": {"const": 1}}, {"type": "text"}])
def test_schemas_of_tools_calls_are_held_to_the_same_rules(schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refusal:
        final(StructuredOutputsParams(json=schema), "tools", whitespace=False)
    assert str(refusal.value.param).startswith("tools.")


@pytest.mark.parametrize(
    ("choice", "strict", "followed"),
    [("required", None, True), ({"type": "function", "function": {"name": "f"}}, None, True),
     ("required", False, False), ("auto", None, None)],
)  # fmt: skip
async def test_a_call_that_is_demanded_follows_its_tool_s_schema(
    client: Callable[..., httpx.AsyncClient],
    facts: Callable[..., Facts],
    choice: object,
    strict: bool | None,
    followed: bool | None,
) -> None:
    function = {"name": "f", "parameters": {"type": "object"}, **({} if strict is None else {"strict": strict})}
    async with client(facts=facts()) as http:
        body = {"messages": [TURN], "tools": [{"type": "function", "function": function}], "tool_choice": choice}
        answer = (await http.post(CHAT, json=body)).json()["body"]
    assert answer["tools"][0]["function"].get("strict") == followed
