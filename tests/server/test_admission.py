# SPDX-License-Identifier: Apache-2.0
import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.app import create_app
from aerie.server.house import House
from aerie.server.occupancy import Capacity, Weight
from aerie.server.settings import ServeSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SETTINGS = ServeSettings(max_queued_requests=1, max_queued_tokens=1000)
PLACES = 3
"""Two in the engine, one in the queue."""


def house_of(application: ASGIApp) -> House:
    house = House(SETTINGS)
    house.readiness.open(application, lambda: False)
    house.occupancy.capacity = Capacity(sequences=PLACES - 1, tokens=1000, longest=4000)
    return house


def client_of(house: House) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(SETTINGS, house))
    return httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers={"content-type": "application/json"}
    )


def scope_of(path: str) -> Scope:
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    return {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}


class Gate:
    """An application that answers once it may."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        if scope["method"] == "POST":
            await self.open.wait()
        await PlainTextResponse("answer")(scope, receive, send)

    async def entered(self, count: int) -> None:
        while self.inside < count:
            await asyncio.sleep(0)


async def test_more_than_the_places_are_refused_at_once_and_everything_else_is_served() -> None:
    gate = Gate()
    house = house_of(gate)
    async with client_of(house) as http, asyncio.timeout(10):
        asked = [asyncio.create_task(http.post(CHAT, json={"max_tokens": 1})) for _ in range(PLACES)]
        await gate.entered(PLACES)
        refused = await http.post(CHAT, json={"max_tokens": 1})
        watched = [(await http.get(path)).status_code for path in ("/livez", "/readyz", "/metrics", "/aerie/status")]
        listed = await http.get("/v1/models")
        gate.open.set()
        answers = await asyncio.gather(*asked)
        after = await http.post(CHAT, json={"max_tokens": 1})

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.json()["error"]["type"] == "service_unavailable_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert watched == [200] * 4
    assert [answer.text for answer in (*answers, listed, after)] == ["answer"] * (PLACES + 2)
    assert (house.occupancy.sequences, house.occupancy.tokens) == (0, 0)


async def test_a_full_queue_refuses_without_reading_the_body() -> None:
    house = house_of(Gate())
    app = create_app(SETTINGS, house)
    sent: list[Message] = []

    async def unread() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    with house.occupancy.holding(Weight(PLACES, 3)):
        await app(scope_of(CHAT), unread, send)
    assert sent[0]["status"] == 503


async def test_a_body_that_came_while_the_queue_filled_up_is_refused_after_it() -> None:
    gate, half, rest = Gate(), asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"n": '
        half.set()
        await rest.wait()
        yield b"2}"

    house = house_of(gate)
    async with client_of(house) as http, asyncio.timeout(10):
        slow = asyncio.create_task(http.post(CHAT, content=chunks()))
        await half.wait()
        with house.occupancy.holding(Weight(PLACES - 1, 3)):
            assert house.occupancy.sequences == PLACES - 1  # who sends occupies nothing
            rest.set()
            refused = await slow
    assert refused.json()["error"]["code"] == "overloaded"
    assert (gate.inside, house.occupancy.sequences, house.occupancy.tokens) == (0, 0, 0)


async def test_long_requests_fill_the_queue_before_it_is_full_of_requests() -> None:
    gate = Gate()
    async with client_of(house_of(gate)) as http, asyncio.timeout(10):
        asked = asyncio.create_task(http.post(CHAT, json={"max_tokens": 1500}))
        await gate.entered(1)
        refused = await http.post(CHAT, json={"max_tokens": 600})
        gate.open.set()
        await asked
        page = (await http.get("/metrics")).text
    assert refused.json()["error"]["code"] == "overloaded"
    assert 'aerie:rejected_requests_total{reason="overloaded_tokens"} 1.0' in page.splitlines()


async def test_a_request_asks_for_no_more_answers_than_the_engine_makes_at_once() -> None:
    gate = Gate()
    gate.open.set()
    async with client_of(house_of(gate)) as http:
        fits = await http.post(COMPLETIONS, json={"prompt": ["a"] * (PLACES - 1)})
        prompts = await http.post(COMPLETIONS, json={"prompt": ["a"] * PLACES})
        choices = await http.post(CHAT, json={"n": PLACES})
        both = await http.post(COMPLETIONS, json={"prompt": ["a"] * 64, "n": 8})
    assert (fits.status_code, gate.inside) == (200, 1)
    for refused, name in ((prompts, "prompt"), (choices, "n"), (both, "prompt")):
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
    assert "512 answers" in both.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/messages/count_tokens"])
async def test_tokenising_waits_in_the_same_queue(path: str) -> None:
    gate = Gate()
    house = house_of(gate)
    async with client_of(house) as http, asyncio.timeout(10):
        with house.occupancy.holding(Weight(PLACES, 3)):
            assert (await http.post(path, json={"prompt": "a"})).status_code == 503
        asked = asyncio.create_task(http.post(path, json={"prompt": "a"}))
        await gate.entered(1)
        assert house.occupancy.sequences == 1
        gate.open.set()
        assert (await asked).status_code == 200
    assert house.occupancy.sequences == 0


async def test_the_application_reads_the_body_as_it_was_sent() -> None:
    application = FastAPI()

    @application.post(CHAT)
    async def chat(request: Request) -> object:
        return json.loads(await request.body())

    async def chunks() -> AsyncIterator[bytes]:
        for chunk in (b'{"a', b'": ', b"[1, 2]}"):
            yield chunk

    async with client_of(house_of(application)) as http:
        assert (await http.post(CHAT, content=chunks())).json() == {"a": [1, 2]}


async def test_a_client_that_leaves_while_it_sends_occupies_nothing() -> None:
    gate = Gate()
    house = house_of(gate)
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there")

    await create_app(SETTINGS, house)(scope_of(CHAT), receive, send)
    assert (gate.inside, house.occupancy.sequences, len(house.exchanges)) == (0, 0, 0)


async def test_nothing_is_left_of_an_application_that_fails() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    house = house_of(failing)
    async with client_of(house) as http:
        with pytest.raises(ZeroDivisionError):
            await http.post(CHAT, json={"max_tokens": 1})
    assert (house.occupancy.sequences, house.occupancy.tokens, len(house.exchanges)) == (0, 0, 0)
