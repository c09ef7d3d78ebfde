# SPDX-License-Identifier: Apache-2.0
"""Who says what in a conversation: roles, contents, and answers to calls."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from aerie.server.rules.facts import ALL_ROLES, Facts
from aerie.server.vllm_facts import rendered_roles

CHAT, RESPONSES, ANTHROPIC, TOKENIZE = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize"
TURN = {"role": "user", "content": "Good morning."}
CALLS = {
    "role": "assistant",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "3"}
USES = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
USED = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "3"}]}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "3"}
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]
Post = Callable[..., Any]


@pytest.fixture
def post(client: Client, facts: Callable[..., Facts]) -> Post:
    """`await post(route, messages, roles=…)`."""

    async def send(route: str, messages: list[Any], roles: frozenset[str] = ALL_ROLES) -> httpx.Response:
        body: dict[str, Any] = {"input" if route == RESPONSES else "messages": messages}
        if route == ANTHROPIC:
            body |= {"model": "m", "max_tokens": 5}
        async with client(facts=facts(roles=roles)) as http:
            return await http.post(route, json=body)

    return send


CONVERSATIONS = [
    (CHAT, [{"role": "developer", "content": "Be brief."}, TURN]),
    (CHAT, [TURN, CALLS, RESULT, {"role": "assistant", "content": "3"}, TURN, RESULT]),
    (CHAT, [TURN, {"role": "assistant", "content": None, "reasoning": "Hm."}]),
    (CHAT, [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]),
    (RESPONSES, [TURN, CALL, OUTPUT]),
    (ANTHROPIC, [TURN, USES, USED]),
]


@pytest.mark.parametrize(("route", "messages"), CONVERSATIONS)
async def test_conversations_pass_unchanged(post: Post, route: str, messages: list[Any]) -> None:
    answer = await post(route, messages)
    assert answer.status_code == 200, answer.text
    assert next(value for value in answer.json()["body"].values() if isinstance(value, list)) == messages


WRONG: list[tuple[list[Any], str, str]] = [
    ([], "", "must have an entry"),
    ([{"role": "banana", "content": "a"}], "[0].role", "'banana'"),
    ([{"role": "function", "name": "f", "content": "a"}], "[0].role", "leaves out"),
    ([{"role": "", "content": "a"}], "[0].role", "''"),
    ([{"role": None, "content": "a"}], "[0].role", "must be"),
    ([{"content": "a"}], "[0].role", "must be"),
    ([TURN, RESULT], "[1].tool_call_id", "call"),
    ([TURN, CALLS, {**RESULT, "tool_call_id": "x"}], "[2].tool_call_id", "call"),
    ([TURN, CALLS, {"role": "tool", "content": "3"}], "[2].tool_call_id", "call"),
    ([RESULT, TURN, CALLS], "[0].tool_call_id", "call"),
    ([{"role": "user", "content": None}], "[0].content", "must be a string"),
    ([TURN, {"role": "user"}], "[1].content", "must be a string"),
    ([{"role": "system"}, TURN], "[0].content", "must be a string"),
    ([TURN, CALLS, {"role": "tool", "tool_call_id": "c"}], "[2].content", "must be a string"),
    ([TURN, {"role": "assistant"}], "[1].content", "tool_calls"),
    ([TURN, {"role": "assistant", "content": None, "tool_calls": []}], "[1].content", "tool_calls"),
    ([{"role": "user", "content": [{"type": "text"}]}], "[0].content[0].text", "must be a string"),
]


@pytest.mark.parametrize("route", [CHAT, TOKENIZE])
@pytest.mark.parametrize(("messages", "path", "reason"), WRONG)
async def test_what_is_wrong_is_named(
    post: Post, told: Told, route: str, messages: list[Any], path: str, reason: str
) -> None:
    answer = await post(route, messages)
    error = told(answer)
    assert (answer.status_code, error["param"]) == (400, f"messages{path}")
    assert reason in error["message"]


@pytest.mark.parametrize(
    ("route", "messages", "param"),
    [
        (RESPONSES, [{"role": "tool", "content": "a"}], "input[0].role"),
        (RESPONSES, [{"role": "user", "content": None}], "input[0].content"),
        (RESPONSES, [TURN, OUTPUT], "input[1].call_id"),
        (RESPONSES, [{"type": "function_call", "call_id": "c", "name": "f"}], "input[0].arguments"),
        (RESPONSES, [*[TURN] * 1000, {"type": "reasoning", "id": "r"}], "input[1000].summary"),
        (ANTHROPIC, [{"role": "tool", "content": "a"}], "messages[0].role"),
        (ANTHROPIC, [{"role": "user", "content": None}], "messages[0].content"),
        (ANTHROPIC, [TURN, USED], "messages[1].content[0].tool_use_id"),
    ],
)
async def test_the_other_apis_say_it_their_way(
    post: Post, told: Told, route: str, messages: list[Any], param: str
) -> None:
    answer = await post(route, messages)
    error = told(answer)
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(param)
    assert len(error["message"]) < 200


async def test_an_answer_is_taken_back_though_it_was_a_refusal(post: Post, told: Told) -> None:
    said = {"type": "message", "role": "assistant", "id": "i", "status": "completed"}
    answer = await post(RESPONSES, [TURN, {**said, "content": [{"type": "refusal", "refusal": "No."}]}])
    text = {"type": "output_text", "text": "No.", "annotations": []}
    assert answer.json()["body"]["input"][1]["content"] == [text]
    assert told(await post(RESPONSES, [TURN, {**said, "content": []}]))["param"] == "input[1].content"


async def test_what_a_template_leaves_out_is_refused_and_developer_is_system(post: Post, told: Told) -> None:
    few = frozenset({"assistant", "system", "user"})
    answer = await post(CHAT, [{"role": "developer", "content": "Be brief."}, TURN], few)
    assert answer.json()["body"]["messages"][0] == {"role": "system", "content": "Be brief."}
    for route, messages, param in (
        (CHAT, [TURN, CALLS, RESULT], "messages[2].role"),
        (ANTHROPIC, [TURN, USES, USED], "messages[2].content[0].tool_use_id"),
        (RESPONSES, [TURN, CALL, OUTPUT], "input[2].call_id"),
    ):
        error = told(await post(route, messages, few))
        assert (error["param"], error["code"]) == (param, "unsupported_content")
        assert "tool" in error["message"]


class Template:
    """A tokenizer that renders messages of some roles, and raises for others."""

    def __init__(self, rendered: set[str], refused: frozenset[str] = frozenset()) -> None:
        self.rendered = rendered
        self.refused = refused

    def apply_chat_template(self, messages: list[dict[str, Any]], *, tokenize: bool, chat_template: None) -> str:
        assert not tokenize
        if {message["role"] for message in messages} & self.refused:
            raise ValueError
        return "".join(message["content"] for message in messages if message["role"] in self.rendered)


@pytest.mark.parametrize(
    ("template", "roles"),
    [
        (Template({"user", "assistant", "system"}), {"user", "assistant", "system"}),
        (Template({*ALL_ROLES, "function"}), {*ALL_ROLES, "function"}),
        # What raises is not silent: the request says it.
        (Template({"user", "assistant"}, frozenset({"system", "tool"})), {"user", "assistant", "system", "tool"}),
    ],
)
def test_a_template_shows_which_roles_it_renders(template: Template, roles: set[str]) -> None:
    assert rendered_roles(template, None) == roles
