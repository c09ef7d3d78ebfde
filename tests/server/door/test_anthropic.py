# SPDX-License-Identifier: Apache-2.0
"""Errors of `/v1/messages` as Anthropic's own client reads them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from aerie.server.app import create_app
from aerie.server.house import House
from aerie.server.keys import make_key
from aerie.server.occupancy import Weight
from aerie.server.rules.facts import Facts
from aerie.server.settings import ServeSettings

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
MakeApplication = Callable[..., Application]
OPEN = ServeSettings(allowed_hosts="*")
MESSAGE: dict[str, Any] = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}


def client_of(app: Application, key: str | None = "any", token: str | None = None) -> anthropic.AsyncAnthropic:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app, raise_app_exceptions=False))
    return anthropic.AsyncAnthropic(
        api_key=key, auth_token=token, base_url="http://localhost", http_client=http, max_retries=0
    )


async def refusal(client: anthropic.AsyncAnthropic, **changes: object) -> anthropic.APIStatusError:
    """What the client raises, for a stream at its end."""

    async def ask() -> None:
        answer: Any = await client.messages.create(**{**MESSAGE, **changes})
        async for _ in answer:
            pass

    with pytest.raises(anthropic.APIStatusError) as caught:
        await ask()
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["type"] == "error"
    assert caught.value.api_message
    return caught.value


async def refused(app: Application, **changes: object) -> anthropic.APIStatusError:
    async with client_of(app) as client:
        return await refusal(client, **changes)


async def refused_with(app: Application, key: str | None, token: str | None = None) -> anthropic.APIStatusError:
    async with client_of(app, key, token) as client:
        return await refusal(client)


def answering(status: int, body: object) -> Application:
    return JSONResponse(body, status_code=status)


async def test_a_parameter_is_named(application: MakeApplication, facts: Callable[..., Facts]) -> None:
    error = await refused(application(facts=facts()), extra_body={"temperature": 3})
    assert isinstance(error, anthropic.BadRequestError)
    assert (error.type, error.error_code) == ("invalid_request_error", "invalid_value")
    assert "temperature" in (error.api_message or "")


async def test_a_key_is_taken_from_either_header(application: MakeApplication, tmp_path: Path) -> None:
    key, line = make_key("alice")
    (tmp_path / "keys").write_text(line)
    app = application(answering(418, {"error": {"message": "in"}}), api_key_file=str(tmp_path / "keys"))
    error = await refused_with(app, "wrong")
    assert isinstance(error, anthropic.AuthenticationError)
    assert (error.type, error.error_code) == ("authentication_error", "invalid_api_key")
    assert (await refused_with(app, key)).status_code == 418
    assert (await refused_with(app, None, key)).status_code == 418


async def test_routes_and_bodies(application: MakeApplication) -> None:
    async with client_of(application()) as client:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await client.messages.batches.list()
    assert caught.value.type == "not_found_error"
    large = await refused(application(max_body_bytes=1024), system="a" * 2000)
    assert (large.status_code, large.type) == (413, "request_too_large")


async def test_an_engine_that_is_not_there() -> None:
    error = await refused(create_app(OPEN, House(OPEN)))
    assert (error.status_code, error.type, error.error_code) == (503, "overloaded_error", "not_ready")
    assert error.response.headers["retry-after"]


async def test_a_full_queue() -> None:
    settings = ServeSettings(max_queued_requests=0, allowed_hosts="*")
    house = House(settings)
    with house.occupancy.holding(Weight(1, 1)):
        error = await refused(create_app(settings, house))
    assert (error.status_code, error.type, error.error_code) == (503, "overloaded_error", "overloaded")


@pytest.mark.parametrize(
    "body",
    [
        {"type": "error", "error": {"type": "BadRequestError", "message": "too long"}},
        {"error": {"type": "BadRequestError", "message": "too long", "param": None, "code": 400}},
    ],
)
async def test_vllm_s_own_refusals_have_types_of_anthropic_s_list(application: MakeApplication, body: object) -> None:
    error = await refused(application(answering(400, body)))
    assert (error.type, error.api_message) == ("invalid_request_error", "too long")


async def test_what_failed_in_the_engine_tells_nothing(application: MakeApplication) -> None:
    error = await refused(application(answering(500, {"error": {"message": "at 0xdeadbeef"}})))
    assert isinstance(error, anthropic.InternalServerError)
    assert (error.type, error.error_code) == ("api_error", "internal_error")
    assert "dead" not in str(error)


async def test_a_stream_without_a_token_times_out_with_a_status(application: MakeApplication) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    error = await refused(application(silent, queue_timeout=0.01), stream=True)
    assert (error.status_code, error.type, error.error_code) == (504, "timeout_error", "queue_timeout")


async def test_a_stream_that_began_ends_with_an_event_that_the_client_raises(application: MakeApplication) -> None:
    async def begun() -> AsyncIterator[str]:
        yield 'event: ping\ndata: {"type": "ping"}\n\n'
        await asyncio.Event().wait()

    stream = StreamingResponse(begun(), media_type="text/event-stream")
    error = await refused(application(stream, request_timeout=0.2), stream=True)
    assert (error.status_code, error.type, error.error_code) == (200, "timeout_error", "request_timeout")


async def test_other_routes_keep_openai_s_form(application: MakeApplication) -> None:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(application()), base_url="http://localhost") as http:
        told = (await http.post("/v1/messagesx", json={})).json()
    assert list(told) == ["error"]
