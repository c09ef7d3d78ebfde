# SPDX-License-Identifier: Apache-2.0
"""Requests that are ended early, over applications that hang, stream and fail."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.errors import ApiError, EngineDead, ShuttingDown
from aerie.server.exchange import CURRENT, Exchanges
from aerie.server.middleware.deadlines import Deadlines

SOON, NEVER = 0.02, 3600.0
TIME_OUT = 10.0
CHAT = "/v1/chat/completions"
TOKEN = b'data: {"token": 1}\n\n'


class Client:
    """One request over raw ASGI; `gone` closes its connection."""

    def __init__(self, path: str = CHAT, headers: dict[str, str] | None = None) -> None:
        raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self.scope: Scope = {
            "type": "http", "method": "POST", "path": path, "headers": raw, "query_string": b"", "state": {},
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self._asked = False

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def ask(self, app: ASGIApp) -> None:
        async with asyncio.timeout(TIME_OUT):
            await app(self.scope, self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class Hanging:
    """A handler like vLLM's: it waits for the engine, and is told when its client goes away."""

    def __init__(self) -> None:
        self.aborted = asyncio.Event()
        self.reached = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.aborted.set()


def streaming(
    tokens: int, then: Callable[[], Awaitable[Any]], closed: asyncio.Event, last: bytes = b"data: [DONE]\n\n"
) -> ASGIApp:
    app = FastAPI()

    async def events() -> AsyncIterator[bytes]:
        try:
            for _ in range(tokens):
                yield TOKEN
            await then()
            yield last
        finally:
            closed.set()

    @app.post(CHAT)
    async def chat(request: Request) -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def deadlines(
    app: ASGIApp,
    *,
    queue: float = NEVER,
    request: float = NEVER,
    lost: Callable[[], ApiError | None] = lambda: None,
    exchanges: Exchanges | None = None,
) -> Deadlines:
    kept = Exchanges() if exchanges is None else exchanges
    return Deadlines(app, kept, lost, queue_timeout=queue, request_timeout=request)


async def forever() -> None:
    await asyncio.Event().wait()


def events_of(body: bytes) -> list[Any]:
    return [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\n\n") if line]


async def test_an_answer_in_time_is_left_as_it_is() -> None:
    client = Client()
    await client.ask(deadlines(JSONResponse({"answer": 42}), queue=SOON, request=SOON))
    assert (client.status, json.loads(client.body)) == (200, {"answer": 42})


@pytest.mark.parametrize(("queue", "whole", "code"), [(SOON, NEVER, "queue_timeout"), (NEVER, SOON, "request_timeout")])
async def test_a_request_that_hangs_is_answered_504_and_aborted(queue: float, whole: float, code: str) -> None:
    app, client = Hanging(), Client()
    await client.ask(deadlines(app, queue=queue, request=whole))
    assert (client.status, client.code) == (504, code)
    assert client.scope["state"]["refusal"] == code
    assert app.aborted.is_set()


async def test_a_stream_without_a_token_has_a_status_of_its_own() -> None:
    client, closed = Client(), asyncio.Event()
    await client.ask(deadlines(streaming(0, forever, closed), queue=SOON))
    assert (client.status, client.code) == (504, "queue_timeout")
    assert closed.is_set()


async def test_a_stream_that_began_ends_with_one_error_event_and_without_done() -> None:
    client, closed = Client(), asyncio.Event()
    await client.ask(deadlines(streaming(2, forever, closed), queue=SOON, request=5 * SOON))
    events = events_of(client.body)
    assert client.status == 200
    assert events[:2] == [{"token": 1}] * 2
    assert [event["error"]["code"] for event in events[2:]] == ["request_timeout"]
    assert not client.sent[-1]["more_body"]
    assert closed.is_set()


@pytest.mark.parametrize("waits", [[True], [False, True]])
async def test_unstreamed_requests_wait_while_the_engine_says_so(waits: list[bool]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = CURRENT.get()
        assert exchange is not None
        exchange.waits += [partial(bool, wait) for wait in waits]
        await Hanging()(scope, receive, send)

    client = Client()
    await client.ask(deadlines(app, queue=SOON))
    assert client.code == "queue_timeout"


async def test_an_unstreamed_request_with_a_first_token_has_left_the_queue() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = CURRENT.get()
        assert exchange is not None
        exchange.waits.append(lambda: False)
        await Hanging()(scope, receive, send)

    client = Client()
    await client.ask(deadlines(app, queue=SOON, request=5 * SOON))
    assert client.code == "request_timeout"


@pytest.mark.parametrize(("asked", "whole"), [(str(SOON), NEVER), ("1e9", SOON)])
async def test_a_client_lowers_its_time_but_does_not_raise_it(asked: str, whole: float) -> None:
    client = Client(headers={"X-Request-Timeout": asked})
    await client.ask(deadlines(Hanging(), request=whole))
    assert client.code == "request_timeout"


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", ""])
async def test_a_time_that_is_none_is_refused(value: str) -> None:
    client = Client(headers={"X-Request-Timeout": value})
    await client.ask(deadlines(Hanging()))
    assert (client.status, client.code) == (400, "invalid_header")
    assert json.loads(client.body)["error"]["param"] == "X-Request-Timeout"


async def test_probes_have_no_deadline_and_are_not_counted() -> None:
    exchanges, app, client = Exchanges(), Hanging(), Client("/readyz")
    asked = asyncio.create_task(client.ask(deadlines(app, queue=SOON, request=SOON, exchanges=exchanges)))
    await app.reached.wait()
    assert len(exchanges) == 0
    await asyncio.sleep(3 * SOON)
    client.gone.set()
    await asked
    assert client.sent == []


async def test_a_client_that_goes_away_is_heard_of_below() -> None:
    exchanges, app, client = Exchanges(), Hanging(), Client()
    asked = asyncio.create_task(client.ask(deadlines(app, exchanges=exchanges)))
    await app.reached.wait()
    assert len(exchanges) == 1
    client.gone.set()
    await asked
    assert app.aborted.is_set()
    assert (client.sent, len(exchanges)) == ([], 0)


async def test_a_stream_whose_client_goes_away_is_closed() -> None:
    client, closed = Client(), asyncio.Event()
    asked = asyncio.create_task(client.ask(deadlines(streaming(1, forever, closed))))
    while len(client.sent) < 2:
        await asyncio.sleep(0)
    client.gone.set()
    await asked
    assert closed.is_set()


async def test_every_exchange_can_be_ended_at_once() -> None:
    exchanges, closed = Exchanges(), asyncio.Event()
    apps: list[ASGIApp] = [Hanging(), streaming(1, forever, closed), streaming(0, forever, asyncio.Event())]
    clients = [Client() for _ in apps]
    pairs = zip(clients, apps, strict=True)
    asked = [asyncio.create_task(client.ask(deadlines(app, exchanges=exchanges))) for client, app in pairs]
    while len(clients[1].sent) < 2:
        await asyncio.sleep(0)
    assert exchanges.interrupt(ShuttingDown()) == len(apps)
    await asyncio.gather(*asked)
    assert [client.status for client in clients] == [503, 200, 503]
    assert [event["error"]["code"] for event in events_of(clients[1].body)[1:]] == ["shutting_down"]
    assert dict(clients[0].sent[0]["headers"])[b"connection"] == b"close"
    assert await exchanges.drained(NEVER)


async def test_waiting_for_the_end_is_bounded_and_can_be_hurried() -> None:
    exchanges, app, client = Exchanges(), Hanging(), Client()
    asked = asyncio.create_task(client.ask(deadlines(app, exchanges=exchanges)))
    await app.reached.wait()
    assert not await exchanges.drained(SOON)
    assert not await exchanges.drained(NEVER, lambda: True)
    client.gone.set()
    await asked


async def test_what_a_dead_engine_leaves_of_a_stream_is_one_event() -> None:
    """vLLM itself sends its own error, `[DONE]`, and whatever it had queued."""
    dead: list[ApiError] = []

    async def die() -> None:
        dead.append(EngineDead())

    client, closed = Client(), asyncio.Event()
    theirs = b'data: {"error": {"message": "EngineCore encountered an issue."}}\n\n'
    app = streaming(2, die, closed, theirs)
    await client.ask(deadlines(app, lost=lambda: next(iter(dead), None)))
    assert [event.get("error", {}).get("code") for event in events_of(client.body)] == [None, None, "engine_dead"]
    assert b"EngineCore" not in client.body
    assert not client.sent[-1]["more_body"]


async def test_what_a_dead_engine_leaves_of_an_answer_is_a_503() -> None:
    client = Client()
    await client.ask(deadlines(JSONResponse({"error": "EngineCore"}, status_code=500), lost=EngineDead))
    assert (client.status, client.code) == (503, "engine_dead")
    assert b"retry-after" in dict(client.sent[0]["headers"])


async def test_an_answer_that_was_whole_before_the_death_is_given() -> None:
    client = Client()
    await client.ask(deadlines(JSONResponse({"answer": 42}), lost=EngineDead))
    assert client.status == 200


async def test_errors_of_the_application_pass() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Client().ask(deadlines(failing))


async def test_an_application_that_does_not_notice_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    await Client().ask(deadlines(deaf, request=SOON))
    assert cancelled.is_set()
