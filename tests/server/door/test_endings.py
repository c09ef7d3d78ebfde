# SPDX-License-Identifier: Apache-2.0
"""Grammars, schemas and regular expressions that leave the engine without a token to choose."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from aerie.server.grammars.productive import endless_rule
from aerie.server.rules.facts import Facts

CHAT = "/v1/chat/completions"
TURN = {"role": "user", "content": "Good morning."}
RULES_IN_64_KIB = 5000
Ask = Callable[..., Any]


@pytest.fixture
def ask(client: Callable[..., httpx.AsyncClient], facts: Callable[..., Facts]) -> Ask:
    """`await ask(structured_outputs={…})`: the answer to a chat request."""

    async def send(**fields: object) -> httpx.Response:
        async with client(facts=facts()) as http:
            return await http.post(CHAT, json={"messages": [TURN], **fields})

    return send


def schema(pattern: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}


LETTERS = "\n".join(f'{letter} ::= "{letter}"' for letter in "bcde")
NOTHING = r"[^\s\S]"


def tag(grammar: str) -> str:
    return json.dumps({"type": "structural_tag", "format": {"type": "grammar", "grammar": grammar}})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"grammar": "root ::= root"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": 'root ::= "x" a | "y"\na ::= b\nb ::= a'}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "root ::= []"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "start: start"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": NOTHING}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": f"(a{NOTHING}|b)+"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"structural_tag": tag("root ::= root")}}, "structured_outputs.structural_tag"),
        ({"response_format": json.loads(tag("root ::= root"))}, "response_format"),
        ({"structured_outputs": {"json": schema(NOTHING)}}, "structured_outputs.json"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema(NOTHING)}}},
            "response_format.json_schema.schema",
        ),
    ],
)
async def test_what_no_text_can_match_is_refused_by_name(ask: Ask, fields: dict[str, Any], param: str) -> None:
    answer = await ask(**fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "invalid_grammar")


@pytest.mark.parametrize(
    "constraint",
    [
        {"grammar": 'root ::= "a" root | root "b" | "c"'},
        {
            "grammar": 'root ::= "a" b? c* d+ e{2,3} [a-z] [^0-9] (b | "")\n'
            + "\n".join(f'{x} ::= "{x}"' for x in "bcde")
        },
        {"grammar": 'root ::= ("a" b){0,5} [\\]\\-(|] "(|[\\"" (="q")\nb ::= b | "b"'},
        {"grammar": 'root ::= TagDispatch(("<a>", b), loop_after_dispatch=true)\nb ::= "b"'},
        {"grammar": 'start: "a" start | "b"'},
        {"grammar": "unparsable"},
        {"regex": r"[^\s]+\d{2,4}(a|b)?[\s\S]*"},
        {"regex": ""},
        {"json": schema("^[a-z]+$")},
        {"json": {"type": "object"}},
        {"json": {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}},
        {"json": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 300}},
        {"choice": ["a", "b"]},
    ],
)
async def test_what_some_text_matches_passes(ask: Ask, constraint: dict[str, Any]) -> None:
    assert (await ask(structured_outputs=constraint)).status_code == 200


async def test_another_compiler_s_grammars_are_its_own_business(
    client: Callable[..., httpx.AsyncClient], facts: Callable[..., Facts]
) -> None:
    known = facts()
    other = Facts(known.shapes, known.vocabulary, known.context, speculative=False, xgrammar=False)
    async with client(facts=other) as http:
        body = {"messages": [TURN], "structured_outputs": {"grammar": "root ::= root"}}
        assert (await http.post(CHAT, json=body)).status_code == 200


def test_the_rule_is_named() -> None:
    assert endless_rule('root ::= (("x" a) | ("y"))\na ::= ((b))\nb ::= ((a))') == "root"
    assert endless_rule('root ::= (("x" a) | ("y"))\na ::= (("z") | ("w" b))\nb ::= ((b))') == "a"


@pytest.mark.parametrize("last", ['"x"', f"r{RULES_IN_64_KIB}"])
def test_a_long_chain_of_rules_is_followed_to_its_end(last: str) -> None:
    chain = "\n".join(f"r{index} ::= ((r{index + 1}))" for index in range(RULES_IN_64_KIB))
    endless = endless_rule(f"root ::= ((r0))\n{chain}\nr{RULES_IN_64_KIB} ::= (({last}))")
    assert endless == (None if last == '"x"' else "root")


def test_brackets_may_be_nested_as_deeply_as_they_like() -> None:
    assert endless_rule("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000) is None
