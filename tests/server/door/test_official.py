# SPDX-License-Identifier: Apache-2.0
"""Every field of the official clients is taken, left out, or refused by its own name; null is as if absent."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from aerie.server.rules.facts import Facts
from aerie.server.rules.fields import NOT_SERVED
from aerie.server.rules.official import HARMLESS, HARMLESS_ANYWHERE, ONLY, REFUSED
from aerie.server.shapes import Shape

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ANTHROPIC, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TURN = {"role": "user", "content": "Good morning."}
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [TURN]},
    COMPLETIONS: {"prompt": "Good"},
    RESPONSES: {"input": "Good"},
    ANTHROPIC: {"model": "m", "max_tokens": 5, "messages": [TURN]},
    COUNT: {"model": "m", "messages": [TURN]},
}
OFFICIAL = {
    CHAT: ChatParams,
    COMPLETIONS: CompletionCreateParamsBase,
    RESPONSES: ResponseCreateParamsBase,
    ANTHROPIC: MessageCreateParamsBase,
    COUNT: MessageCountTokensParams,
}
NAMES = {route: {*params.__annotations__, "stream"} - ({"stream"} if route == COUNT else set())
         for route, params in OFFICIAL.items()}  # fmt: skip
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]
Post = Callable[..., Any]


@pytest.fixture
def post(client: Client, facts: Callable[..., Facts]) -> Post:
    """`await post(route, {field: value})`: the least body of the route with these fields."""

    async def send(route: str, fields: dict[str, Any]) -> httpx.Response:
        async with client(facts=facts()) as http:
            return await http.post(route, json={**LEAST[route], **fields})

    return send


@pytest.mark.parametrize("route", OFFICIAL)
def test_every_field_of_the_clients_is_known(shapes: dict[str, Shape], route: str) -> None:
    ours = {*HARMLESS.get(route, ()), *HARMLESS_ANYWHERE.get(route, ()), *REFUSED.get(route, ()), *NOT_SERVED}
    assert NAMES[route] <= ours | set(shapes[route].fields)


@pytest.mark.parametrize("route", OFFICIAL)
async def test_null_is_as_if_absent(post: Post, shapes: dict[str, Shape], route: str) -> None:
    names = ({*NAMES[route], *shapes[route].fields, *REFUSED.get(route, ()), *NOT_SERVED}) - set(LEAST[route])
    answer = await post(route, dict.fromkeys(names))
    assert answer.status_code == 200, answer.text
    assert answer.json()["body"] == LEAST[route]


@pytest.mark.parametrize(
    ("route", "fields", "kept"),
    [
        (CHAT, {"stream": True, "stream_options": {"include_usage": None}}, {"stream": True}),
        (CHAT, {"messages": [{**TURN, "name": None}]}, {"messages": [TURN]}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "strict": None}}]}, {}),
    ],
)
async def test_null_is_as_if_absent_inside_too(
    post: Post, route: str, fields: dict[str, Any], kept: dict[str, Any]
) -> None:
    answer = await post(route, fields)
    assert answer.status_code == 200, answer.text
    body = answer.json()["body"]
    assert all(body[name] == value for name, value in kept.items())


async def test_an_unknown_field_is_unknown_when_it_is_null_too(post: Post, told: Told) -> None:
    assert told(await post(CHAT, {"temprature": None}))["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (
            CHAT,
            {"modalities": ["text"], "verbosity": "medium", "audio": None, "functions": [], "function_call": "none"},
        ),
        (CHAT, {"prediction": {"type": "content", "content": "x"}, "prompt_cache_options": {"mode": "implicit"}}),
        (RESPONSES, {"stream_options": {"include_obfuscation": False}, "prompt_cache_retention": "24h"}),
        (COMPLETIONS, {"best_of": 1}),
        (ANTHROPIC, {"speed": "standard", "service_tier": "auto"}),
    ],
)
async def test_what_changes_no_answer_is_left_out(post: Post, route: str, fields: dict[str, Any]) -> None:
    answer = await post(route, fields)
    assert answer.json()["body"] == LEAST[route], answer.text


async def test_obfuscation_of_streams_is_left_out_where_it_stands(post: Post) -> None:
    options = {"include_usage": True, "include_obfuscation": False}
    for route in (CHAT, COMPLETIONS):
        answer = await post(route, {"stream": True, "stream_options": options})
        assert answer.json()["body"]["stream_options"] == {"include_usage": True}


VALUES: dict[str, Any] = {"modalities": ["text", "audio"], "verbosity": "low", "function_call": "auto", "speed": "fast"}


@pytest.mark.parametrize(("route", "name"), [(route, name) for route, names in REFUSED.items() for name in names])
async def test_the_rest_is_refused_by_its_own_name_with_the_reason(
    post: Post, told: Told, route: str, name: str
) -> None:
    answer = await post(route, {name: VALUES.get(name, {"type": "x"})})
    error = told(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", name)
    assert REFUSED[route][name] in error["message"]
    assert repr(ONLY.get(route, {}).get(name, "cannot")) in error["message"] or "cannot" in error["message"]


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_allowed_tools_are_the_only_ones(post: Post, mode: str) -> None:
    tools = [tool("f"), tool("g"), tool("h")]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool("h"), tool("f")]}}
    body = (await post(CHAT, {"tools": tools, "tool_choice": allowed})).json()["body"]
    assert ([entry["function"]["name"] for entry in body["tools"]], body["tool_choice"]) == (["f", "h"], mode)
    flat: list[dict[str, Any]] = [
        {"type": "function", "name": name, "parameters": {}, "strict": False} for name in ("f", "g")
    ]
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "g"}]}
    body = (await post(RESPONSES, {"tools": flat, "tool_choice": choice})).json()["body"]
    assert ([entry["name"] for entry in body["tools"]], body["tool_choice"]) == (["g"], mode)


@pytest.mark.parametrize(
    ("allowed", "param"),
    [
        ({"mode": "auto", "tools": [tool("x")]}, "tools[0]"),
        ({"mode": "auto", "tools": [3]}, "tools[0]"),
        ({"mode": "auto", "tools": []}, "tools"),
        ({"mode": "any", "tools": [tool("f")]}, "mode"),
        ({}, "mode"),
    ],
)
async def test_allowed_tools_are_some_of_the_tools(post: Post, told: Told, allowed: object, param: str) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    error = told(await post(CHAT, {"tools": [tool("f")], "tool_choice": choice}))
    assert error["param"] == f"tool_choice.allowed_tools.{param}"
