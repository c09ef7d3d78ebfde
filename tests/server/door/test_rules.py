# SPDX-License-Identifier: Apache-2.0
"""What a request may say, held against the fields of vLLM's own request models."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from aerie.server.rules.facts import Facts

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ANTHROPIC, TOKENIZE, DETOKENIZE = "/v1/messages", "/tokenize", "/detokenize"
TURN = {"role": "user", "content": "Good morning."}
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [TURN]},
    COMPLETIONS: {"prompt": "Good"},
    RESPONSES: {"input": [TURN]},
    ANTHROPIC: {"model": "m", "max_tokens": 5, "messages": [TURN]},
    "/v1/messages/count_tokens": {"model": "m", "messages": [TURN]},
    TOKENIZE: {"messages": [TURN]},
    DETOKENIZE: {"tokens": [0, 99]},
}
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]
MakeFacts = Callable[..., Facts]


@pytest.fixture
def post(client: Client, facts: MakeFacts) -> Callable[..., Any]:
    """`await post(route, {field: value}, **settings)`: the least body of the route with these fields."""

    async def send(route: str, fields: dict[str, Any], *, speculative: bool = False, **settings: object) -> Any:  # noqa: ANN401 - a response
        async with client(facts=facts(speculative=speculative), **settings) as http:
            return await http.post(route, json={**LEAST[route], **fields})

    return send


Post = Callable[..., Any]


@pytest.mark.parametrize("route", LEAST)
async def test_the_least_body_of_each_route_passes_unchanged(post: Post, route: str) -> None:
    answer = await post(route, {})
    assert (answer.status_code, answer.json()["body"]) == (200, LEAST[route])


OFFICIAL: list[tuple[str, dict[str, Any]]] = [
    (
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Call it."}], "name": "ada"},
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "Hm.",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "3"},
            ],
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
            ],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 20,
            "stop": ["a", "b"],
            "seed": -(2**63),
            "n": 8,
            "temperature": 0.5,
            "max_completion_tokens": 512,
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ),
    (COMPLETIONS, {"prompt": [[1, 2], [3]], "logprobs": 5, "echo": True, "max_tokens": 1, "logit_bias": {"99": -100}}),
    (COMPLETIONS, {"structured_outputs": {"choice": ["a", "b"]}, "stop_token_ids": [0, 99], "bad_words": ["x"]}),
    (
        RESPONSES,
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "3"},
            ],
            "instructions": "Be brief.",
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
            "reasoning": {"effort": "low"},
            "store": True,
        },
    ),
    (
        ANTHROPIC,
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                TURN,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "3"}]}
                    ],
                },
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "metadata": {"user_id": "u"},
        },
    ),
]


@pytest.mark.parametrize(("route", "fields"), OFFICIAL)
async def test_what_official_clients_send_passes_unchanged(post: Post, route: str, fields: dict[str, Any]) -> None:
    answer = await post(route, fields)
    assert (answer.status_code, answer.json().get("error")) == (200, None)
    assert answer.json()["body"] == {**LEAST[route], **fields}


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (CHAT, {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "u"}),
        (ANTHROPIC, {"service_tier": "auto"}),
    ],
)
async def test_what_changes_no_answer_is_left_out(post: Post, route: str, fields: dict[str, Any]) -> None:
    assert (await post(route, fields)).json()["body"] == LEAST[route]


async def test_an_item_of_an_answer_is_taken_back_as_one_of_a_request(post: Post) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    item = {"type": "function_call_output", "id": "i", "call_id": "c", "status": "completed", "output": "3"}
    answer = await post(RESPONSES, {"input": [call, {**item, "created_by": "u"}]})
    assert answer.json()["body"]["input"] == [call, item]


async def test_cache_control_of_anthropic_s_clients_is_left_out(post: Post) -> None:
    part = {"type": "text", "text": "Hi"}
    fields = {"messages": [{"role": "user", "content": [{**part, "cache_control": {"type": "ephemeral"}}]}]}
    assert (await post(ANTHROPIC, fields)).json()["body"]["messages"] == [{"role": "user", "content": [part]}]


UNKNOWN: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"temprature": 1}, "temprature", "; did you mean temperature?"),
    (CHAT, {"guided_json": {}}, "guided_json", ""),
    (CHAT, {"best_of": 4}, "best_of", ""),
    (CHAT, {"stream": True, "stream_options": {"include_usge": True}}, "stream_options.include_usge", "include_usage?"),
    (CHAT, {"messages": [{**TURN, "contents": "x"}]}, "messages[0].contents", "; did you mean content?"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}]},
        "messages[0].content[0].txt",
        "did you mean text?",
    ),
    (CHAT, {"response_format": {"type": "json_schema", "schema": {}}}, "response_format.schema", ""),
    (CHAT, {"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn", "did you mean json?"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}, "x": 1}]}, "tools[0].x", ""),
    (COMPLETIONS, {"messages": []}, "messages", ""),
    (RESPONSES, {"max_tokens": 5}, "max_tokens", "max_output_tokens?"),
    (RESPONSES, {"reasoning": {"efort": "low"}}, "reasoning.efort", "effort?"),
    (ANTHROPIC, {"stop": ["x"]}, "stop", ""),
    (ANTHROPIC, {"tools": [{"name": "f", "input_schema": {}, "schema": {}}]}, "tools[0].schema", ""),
    (TOKENIZE, {"prompt": "x", "texts": 1}, "texts", ""),
    (DETOKENIZE, {"skip": True}, "skip", ""),
]


@pytest.mark.parametrize(("route", "fields", "param", "hint"), UNKNOWN)
async def test_an_unknown_field_is_refused_by_name(
    post: Post, told: Told, route: str, fields: dict[str, Any], param: str, hint: str
) -> None:
    answer = await post(route, fields)
    error = told(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "unknown_parameter", param)
    assert error["message"].startswith(param)
    assert hint in error["message"]


async def test_unknown_fields_are_left_out_when_asked(post: Post) -> None:
    fields = {"temprature": 1, "messages": [{**TURN, "contents": "x"}]}
    answer = await post(CHAT, fields, unknown_fields="ignore")
    assert answer.json()["body"] == LEAST[CHAT]


WRONG_TYPES: list[tuple[str, str, list[Any]]] = [
    (CHAT, "n", ["1", 1.0, 1.5, True, [1], {}]),
    (CHAT, "max_tokens", ["5", 5.0, True]),
    (CHAT, "seed", ["1", 0.5, False]),
    (CHAT, "temperature", ["1", True, []]),
    (CHAT, "stream", ["true", 1, "yes"]),
    (CHAT, "logprobs", [1, "true"]),
    (CHAT, "top_logprobs", ["3", True]),
    (CHAT, "stop", [1, [1], {"a": 1}]),
    (CHAT, "messages", ["x", {}, 1]),
    (CHAT, "stop_token_ids", [["1"], [1.0], [True], 5]),
    (CHAT, "logit_bias", [{"1": "2"}, {"1": True}, [1]]),
    (COMPLETIONS, "logprobs", ["5", True, 2.0]),
    (COMPLETIONS, "prompt", [1, {"a": 1}, [1.5], ["a", True]]),
    (RESPONSES, "max_output_tokens", ["5", 5.0]),
    (ANTHROPIC, "max_tokens", ["5", True]),
    (DETOKENIZE, "tokens", [["1"], [1.0], "x"]),
]


@pytest.mark.parametrize(
    ("route", "name", "value"), [(route, name, value) for route, name, values in WRONG_TYPES for value in values]
)
async def test_types_are_not_guessed(post: Post, told: Told, route: str, name: str, value: object) -> None:
    answer = await post(route, {name: value})
    error = told(answer)
    assert (answer.status_code, error["code"]) == (400, "invalid_type")
    assert error["param"].startswith(name)


OUT_OF_RANGE: list[tuple[str, str, list[Any]]] = [
    (CHAT, "n", [0, -1, 9, 10**9, 2**62]),
    (CHAT, "max_tokens", [0, -1, 513, 2**31, 2**62]),
    (CHAT, "max_completion_tokens", [0, 513]),
    (CHAT, "min_tokens", [-1, 513]),
    (CHAT, "truncate_prompt_tokens", [-2, 513]),
    (CHAT, "temperature", [-1, 2.1, 1e300, -5e-324]),
    (CHAT, "top_p", [-0.1, 1.1]),
    (CHAT, "top_k", [-2, 2**31]),
    (CHAT, "presence_penalty", [-2.1, 2.1, 1e300]),
    (CHAT, "repetition_penalty", [0, -1, 1e300]),
    (CHAT, "top_logprobs", [-1, 21, 10**6]),
    (CHAT, "prompt_logprobs", [-1, 21]),
    (CHAT, "stop", [["a"] * 17, "a" * 257]),
    (CHAT, "stop_token_ids", [[-1], [100], [101], [2**31], [0] * 1025]),
    (CHAT, "allowed_token_ids", [[-1], [100]]),
    (CHAT, "bad_words", [["a"] * 1025, ["a" * 257]]),
    (CHAT, "logit_bias", [{"100": 1}, {"-1": 1}, {"x": 1}, {"1": 101}, {"١": 1}, {str(i): 1 for i in range(1025)}]),
    (COMPLETIONS, "logprobs", [-1, 21]),
    (COMPLETIONS, "prompt", [["a"] * 65, [[0]] * 65, [100], [[1], [100]], [-1]]),
    (RESPONSES, "max_output_tokens", [0, 513]),
    (RESPONSES, "stop_token_ids", [[100]]),
    (ANTHROPIC, "max_tokens", [0, 513]),
    (ANTHROPIC, "stop_sequences", [["a"] * 17]),
    (DETOKENIZE, "tokens", [[-1], [100]]),
]


@pytest.mark.parametrize(
    ("route", "name", "value"), [(route, name, value) for route, name, values in OUT_OF_RANGE for value in values]
)
async def test_numbers_have_ranges_and_tokens_a_vocabulary(
    post: Post, told: Told, route: str, name: str, value: object
) -> None:
    answer = await post(route, {name: value})
    error = told(answer)
    assert (answer.status_code, error["code"]) == (400, "invalid_value")
    assert error["param"].startswith(name)


@pytest.mark.parametrize(("name", "value"), [("min_p", 0.1), ("logit_bias", {"1": 1})])
async def test_what_cannot_be_drafted_with_is_refused_while_drafting(
    post: Post, told: Told, name: str, value: object
) -> None:
    error = told(await post(CHAT, {name: value}, speculative=True))
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert "drafts" in error["message"]
    assert (await post(CHAT, {name: value})).status_code == 200
    assert (await post(CHAT, {name: None}, speculative=True)).status_code == 200


async def test_limits_are_options(post: Post) -> None:
    assert (await post(CHAT, {"n": 9}, max_choices=9)).status_code == 200
    assert (await post(CHAT, {"n": 2}, max_choices=1)).status_code == 400
    assert (await post(CHAT, {"messages": [TURN] * 3}, max_messages=2)).status_code == 400


async def test_no_stream_is_asked_for_usage_that_the_client_did_not_ask_for(post: Post) -> None:
    for options in ({}, {"stream_options": None}, {"stream_options": {"include_usage": False}}):
        for route in (CHAT, COMPLETIONS):
            body = (await post(route, {"stream": True, **options})).json()["body"]
            assert body.get("stream_options") == options.get("stream_options")
