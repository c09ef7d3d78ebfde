# SPDX-License-Identifier: Apache-2.0
"""Lengths in the schemas of answers: a pattern says them, and means the same but for control characters."""

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import xgrammar

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


async def test_it_is_done_to_the_schemas_of_answers_only(
    client: Callable[..., httpx.AsyncClient], facts: Callable[..., Facts]
) -> None:
    bounded = {"properties": {"a": {"items": {"type": "string", "maxLength": 8}}}}
    told = {"properties": {"a": {"items": {"type": "string", "pattern": r"^[\s\S]{0,8}$"}}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": bounded}}
    async with client(facts=facts()) as http:
        for given in (bounded, json.dumps(bounded)):
            body = {"messages": [TURN], "structured_outputs": {"json": given}}
            assert (await http.post(CHAT, json=body)).json()["body"]["structured_outputs"]["json"] == told
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": bounded}}
        answer = await http.post(CHAT, json={"messages": [TURN], "response_format": form})
        assert answer.json()["body"]["response_format"]["json_schema"]["schema"] == told
        kept = {"messages": [TURN], "tools": [tool]}
        assert (await http.post(CHAT, json=kept)).json()["body"] == kept
