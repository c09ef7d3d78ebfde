# SPDX-License-Identifier: Apache-2.0
"""What a body costs before it is refused: the event loop stays free, and memory is bounded, whatever 4 MiB hold."""

import asyncio
import difflib
import json
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from aerie.server import shapes
from aerie.server.refusals import BadRequest
from aerie.server.rules import json_schema
from aerie.server.rules.facts import Facts
from aerie.server.rules.grammars import check_grammars
from aerie.server.rules.json_schema import resolve
from aerie.server.settings import ServeSettings
from aerie.server.strict_json import count_values, parse

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ANTHROPIC, TOKENIZE, DETOKENIZE = "/v1/messages", "/tokenize", "/detokenize"
COUNT_TOKENS = "/v1/messages/count_tokens"
TURN = {"role": "user", "content": "Good morning."}
LARGEST = 4 << 20
LOOP_SECONDS = 0.5
"""Of the loop's own thread in one step. A millisecond is usual, and 4 MiB are read and answered in a few tens."""
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]


def filled(before: str, repeated: str, after: str, length: int = LARGEST) -> bytes:
    """A body of about `length` bytes: the repeated text between two others."""
    return (before + repeated * ((length - len(before + after)) // len(repeated)) + after).encode()


def chat(messages: str) -> str:
    return '{"messages": [{"role": "user", "content": "a"}], ' + messages


SAID = '{"messages": [{"role": "user", "content": "'
PARTS = '{"messages": [{"role": "user", "content": ['
PART = '{"type":"text","text":"a"}'
CACHED = '{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}'
WRONG_ITEM = {"type": "message", "role": "user", "content": "a", "id": []}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" + "[]," * (1 << 20) + "[]]"}}
BODIES: dict[str, tuple[str, bytes, str | None]] = {
    "text parts": (CHAT, filled(PARTS, PART + ",", PART + "]}]}"), None),
    "as many values as fit": (CHAT, filled(PARTS, PART + ",", PART + "]}]}", 13_000 * 27), "messages"),
    "parts of the messages API": (ANTHROPIC, filled(PARTS, CACHED + ",", CACHED + "]}]}"), None),
    "fewer of them": (ANTHROPIC, filled(PARTS, CACHED + ",", CACHED + "]}]}", 6_000 * 65), "messages"),
    "empty lists": (CHAT, filled(chat('"chat_template_kwargs": {"a": ['), "[],", "[]]}}"), None),
    "documents": (CHAT, filled(chat('"documents": ['), "{},", "{}]}", 20_000 * 3), "documents"),
    "unknown fields": (CHAT, filled('{"messages": [', '{"rolle":1},', '{"rolle":1}]}', 1000 * 12), "messages[0].rolle"),
    "token ids": (COMPLETIONS, filled('{"prompt": [', "1,", "100]}"), "prompt[2097"),
    "token ids to text": (DETOKENIZE, filled('{"tokens": [', "1,", "1]}"), "tokens"),
    "text to token ids": (TOKENIZE, filled('{"prompt": "', "a ", '"}'), "prompt"),
    "messages to token ids": (TOKENIZE, filled(SAID, "a ", '"}]}'), "messages"),
    "messages to count": (COUNT_TOKENS, filled(SAID, "a ", '"}]}'), "messages"),
    "tools to token ids": (TOKENIZE, filled(chat('"tools": [{"type": "function", "function": {"name": "'),
                                            "a ", '"}}]}'), "tools"),
    "wrong items": (RESPONSES, json.dumps({"input": [WRONG_ITEM] * 1000}).encode(), "input[0]"),
    "calls": (CHAT, json.dumps({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}).encode(),
              "messages[0].tool_calls[0].function.arguments"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
async def test_the_loop_stays_free_while_a_large_body_is_refused(
    client: Client, facts: Callable[..., Facts], told: Told, name: str
) -> None:
    route, body, param = BODIES[name]
    steps: list[float] = []

    async def watch() -> None:
        while True:
            began = time.thread_time()  # of this thread: what others take, and other processes, is not counted
            try:
                await asyncio.sleep(0.001)
            finally:
                steps.append(time.thread_time() - began)

    async with client(facts=facts()) as http:
        watching = asyncio.create_task(watch())
        answer = await http.post(route, content=body, headers={"Content-Type": "application/json"})
        livez = await http.get("/livez")
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    assert (answer.status_code, livez.status_code) == (400, 200)
    error = told(answer)
    assert str(error["param"]).startswith(str(param)), error
    assert len(answer.content) < 1024
    assert max(steps) < LOOP_SECONDS


async def test_what_official_clients_send_in_bulk_passes(client: Client, facts: Callable[..., Facts]) -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    async with client(facts=facts()) as http:
        for route, body in (
            (CHAT, {"messages": [TURN] * 1024}),
            (CHAT, {"messages": [{"role": "user", "content": [part] * 4096}]}),
            (COMPLETIONS, {"prompt": ["a" * (1 << 15)] * 8}),
            (CHAT, {"messages": [{"role": "user", "content": 'x = ["[", {}], "' * 200_000}]}),
        ):
            assert (await http.post(route, json=body)).status_code == 200


def test_names_are_compared_only_to_refuse_one(monkeypatch: pytest.MonkeyPatch, facts: Callable[..., Facts]) -> None:
    compared = 0

    def count(*_: object, **__: object) -> list[str]:
        nonlocal compared
        compared += 1
        return []

    monkeypatch.setattr(difflib, "get_close_matches", count)
    shape = facts().shapes[CHAT]
    unknown = {"messages": [{**TURN, "cache_control": {}, "x": 1} for _ in range(10)]}
    shapes.check_shape(unknown, shape, "", lambda _, __: True)
    assert (compared, unknown) == (0, {"messages": [TURN] * 10})
    with pytest.raises(BadRequest):
        shapes.check_shape({"messages": [{**TURN, "x": 1}] * 10}, shape, "", lambda _, __: False)
    assert compared == 1


def test_references_are_followed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = 0

    def count(document: object, reference: object) -> object:
        nonlocal followed
        followed += 1
        return resolve(document, reference)

    monkeypatch.setattr(json_schema, "resolve", count)
    length = 1000
    links = {f"a{index}": {"$ref": f"#/$defs/a{index + 1}"} for index in range(length)}
    json_schema.check_document({"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {}}}, "schema")
    assert followed == length + 1


@pytest.mark.parametrize("text", ['"\\\\', "[", "\n", "{", "{1", "{ ", "a\n", " a", '"a\n', "\t"])
@pytest.mark.parametrize("end", ["", "x", "1" + " " * 20_000])
def test_the_counts_of_a_grammar_are_read_in_one_pass(text: str, end: str) -> None:
    grammar = text * (40_000 // len(text)) + end
    began = time.thread_time()
    check_grammars({"structured_outputs": {"grammar": grammar}}, ServeSettings.model_validate({}))
    assert time.thread_time() - began < LOOP_SECONDS


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"a": [1, 2, [], {}]}', 5),
        (r'["\"[[[[", "\\", "{\\\"{"]', 4),
        ('["' + "[,{" * 2000 + '"]', 2),
        ("[" + "1," * 2000 + "1]", 1),
        (r'["' + r"\"" * 2000 + '"]', 2),
    ],
)
def test_values_are_counted_as_json_has_them(text: str, values: int) -> None:
    most = values
    parse(text.encode(), 64, most)
    with pytest.raises(BadRequest):
        parse(text.encode(), 64, most - 1)


BYTES_PER_BYTE, BYTES_PER_VALUE = 24, 256
"""The bounds that docs/operations.md tells."""


@pytest.mark.parametrize(
    ("before", "repeated", "after"),
    [
        ('["', "a", '"]'),
        ('["\U0001f44b', "a", '"]'),
        ('["', "é", '"]'),
        ("[", "1e1,", "1]"),
        ("[", "300,", "1]"),
        ("[", "[],", "1]"),
        ("[", '{"":[]},', "1]"),
        ("[", '"é",', "1]"),
    ],
)
def test_a_body_takes_no_more_memory_than_is_told(before: str, repeated: str, after: str) -> None:
    body = filled(before, repeated, after, 1 << 18)
    values = count_values(body, len(body))
    tracemalloc.start()
    try:
        parsed = parse(body, 64)
        written = json.dumps(parsed).encode()
        again = json.loads(written)  # as vLLM does
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert again == parsed
    assert peak <= BYTES_PER_BYTE * len(body) + BYTES_PER_VALUE * values


def test_memory_for_a_body_is_bounded_before_it_is_parsed() -> None:
    body = filled("[", "[],", "[]]")
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest):
            parse(body, 64, 1 << 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * LARGEST
