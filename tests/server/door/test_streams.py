# SPDX-License-Identifier: Apache-2.0
"""How streams of the engine end, and what full answers say of their end, over answers like vLLM's."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseErrorEvent, ResponseStreamEvent
from pydantic import TypeAdapter
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from aerie.server.exchange import CURRENT

Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
CREATED = b'event: response.created\ndata: {"type": "response.created", "sequence_number": 0}\n\n'


def vllm_error(code: int, message: str = "no such thing at /models/secret") -> bytes:
    kind = "BadRequestError" if code == 400 else "InternalServerError"
    body = {"error": {"message": message, "type": kind, "param": "stop", "code": code}}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def anthropic_error(message: str) -> bytes:
    error = {"type": "error", "error": {"type": "internal_error", "message": message}}
    return b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"


def streaming(*events: bytes, fails: bool = False) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for event in events:
            yield event
        if fails:
            raise RuntimeError("0x7f3a5c001230 is broken")

    return StreamingResponse(body(), media_type="text/event-stream")


def events(text: str) -> list[tuple[str | None, Any]]:
    """Name and data of each event; `[DONE]` has no JSON."""
    found = []
    for block in text.split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event"), lines["data"] if lines["data"] == "[DONE]" else json.loads(lines["data"])))
    return found


async def ask(client: Client, inner: object, route: str) -> httpx.Response:
    async with client(inner) as http:
        return await http.post(route, json={})


async def test_a_stream_without_an_error_is_passed_on_as_it_is(client: Client) -> None:
    answer = await ask(client, streaming(CHUNK, CHUNK, DONE), CHAT)
    assert answer.content == CHUNK + CHUNK + DONE
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("code", "type_", "told_code"), [(400, "invalid_request_error", "invalid_value"),
                                                          (500, "server_error", "internal_error")])  # fmt: skip
async def test_nothing_follows_an_error(client: Client, route: str, code: int, type_: str, told_code: str) -> None:
    answer = await ask(client, streaming(CHUNK, vllm_error(code), DONE), route)
    (_, chunk), (name, last) = events(answer.text)
    assert chunk["choices"]
    assert (name, list(last)) == (None, ["error"])
    assert (last["error"]["type"], last["error"]["code"]) == (type_, told_code)
    assert "secret" not in answer.text
    assert ("no such thing" in answer.text) == (code == 400)


async def test_what_is_refused_before_the_first_event_has_its_status(client: Client, told: Told) -> None:
    answer = await ask(client, streaming(vllm_error(400), DONE), CHAT)
    assert (answer.status_code, told(answer)["code"], told(answer)["param"]) == (400, "invalid_value", "stop")
    answer = await ask(client, streaming(vllm_error(500), DONE), COMPLETIONS)
    assert (answer.status_code, told(answer)["code"]) == (500, "internal_error")
    answer = await ask(client, streaming(fails=True), COMPLETIONS)
    assert (answer.status_code, told(answer)["code"]) == (500, "internal_error")


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_an_exception_within_a_stream_is_an_event(
    client: Client, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(client, streaming(CREATED, fails=True), route)
    error = events(answer.text)[-1][1]["error"]
    assert answer.status_code == 200
    assert error["message"] == "The server failed to answer this request."
    assert "is broken" in caplog.text
    assert "0x7f" not in answer.text


async def test_an_error_of_anthropic_s_stream_is_the_last_event(client: Client) -> None:
    answer = await ask(
        client, streaming(b"event: message_start\ndata: {}\n\n", anthropic_error("0x7f"), b"x"), MESSAGES
    )
    name, data = events(answer.text)[-1]
    assert name == "error"
    assert (data["type"], data["error"]["type"]) == ("error", "api_error")
    assert data["error"]["details"] == {"error_code": "internal_error"}


async def test_an_error_of_a_responses_stream_is_openai_s_event(application: Callable[..., Application]) -> None:
    transport = httpx.ASGITransport(application(streaming(CREATED, fails=True)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        name, data = events((await http.post(RESPONSES, json={})).text)[-1]
    assert name == "error"
    event = TypeAdapter[Any](ResponseStreamEvent).validate_python(data)
    assert isinstance(event, ResponseErrorEvent)
    assert (event.code, event.sequence_number) == ("internal_error", 1)
    assert data["error"]["code"] == "internal_error"


@pytest.mark.parametrize("route", [CHAT, RESPONSES])
async def test_openai_s_client_raises_it(application: Callable[..., Application], route: str) -> None:
    import httpx2

    inner = streaming(CREATED if route == RESPONSES else CHUNK, vllm_error(400), DONE)
    transport = httpx2.ASGITransport(application(inner), raise_app_exceptions=False)
    http = httpx2.AsyncClient(transport=transport)
    async with openai.AsyncOpenAI(api_key="any", base_url="http://test/v1", http_client=http, max_retries=0) as gpt:
        asked: Any = (
            gpt.responses.create(model="m", input="Hi", stream=True)
            if route == RESPONSES
            else gpt.chat.completions.create(model="m", messages=[], stream=True)
        )
        stream = await asked
        with pytest.raises(openai.APIError) as caught:
            [_ async for _ in stream]
    assert (caught.value.code, caught.value.param) == ("invalid_value", "stop")


ITEM = {"id": "msg_1", "type": "message", "status": "completed"}


def of_responses(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_response_that_is_cut_is_incomplete_and_so_is_its_last_item(client: Client, status: str) -> None:
    response = {"status": status, "output": [{**ITEM, "id": "rs_1"}, ITEM]}
    items = [of_responses("response.output_item.done", item=item) for item in response["output"]]
    stream = streaming(CREATED, items[0], CREATED, items[1], of_responses("response.completed", response=response))
    sent = events((await ask(client, stream, RESPONSES)).text)
    assert [name for name, _ in sent] == [
        "response.created", "response.output_item.done", "response.created", "response.output_item.done",
        f"response.{status}",
    ]  # fmt: skip
    assert [name for name, _ in sent] == [data["type"] for _, data in sent]
    assert [data["item"]["status"] for name, data in sent if name == "response.output_item.done"] == [
        "completed",
        status,
    ]
    expected = {"status": status, "output": [{**ITEM, "id": "rs_1"}, {**ITEM, "status": status}]}
    assert sent[-1][1]["response"] == expected
    full = await ask(client, JSONResponse(response), RESPONSES)
    assert full.json() == expected
    assert int(full.headers["content-length"]) == len(full.content)


async def test_an_item_waits_for_no_more_than_the_next_event(client: Client) -> None:
    done = of_responses("response.output_item.done", item=ITEM)
    assert (await ask(client, streaming(CREATED, done), RESPONSES)).content == CREATED + done


@pytest.mark.parametrize(("cut", "finish"), [(set(), "tool_calls"), ({0}, "length"), ({1}, "tool_calls")])
async def test_a_chat_that_is_cut_within_its_second_call_says_so(client: Client, cut: set[int], finish: str) -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = CURRENT.get()
        assert exchange is not None
        exchange.cut |= cut
        await JSONResponse({"choices": [{"index": 0, "finish_reason": "tool_calls"}]})(scope, receive, send)

    assert (await ask(client, inner, CHAT)).json()["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(("cut", "reason"), [(set(), "tool_use"), ({0}, "max_tokens")])
async def test_so_does_a_message_of_anthropic_s(client: Client, cut: set[int], reason: str) -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = CURRENT.get()
        assert exchange is not None
        exchange.cut |= cut
        message = {"content": [{"type": "tool_use"}], "stop_reason": "tool_use"}
        await JSONResponse(message)(scope, receive, send)

    assert (await ask(client, inner, MESSAGES)).json()["stop_reason"] == reason
