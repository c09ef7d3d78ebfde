# SPDX-License-Identifier: Apache-2.0
"""How many answers one key may have made at a time."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from aerie.server.keys import make_key

CHAT = "/v1/chat/completions"
(ALICE, ALICES_LINE), (BOB, BOBS_LINE) = make_key("alice"), make_key("bob")
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{ALICES_LINE}\n{BOBS_LINE}\n")
    return path


async def test_a_key_has_so_many_requests_at_a_time(client: Client, told: Told, key_file: Path) -> None:
    gate, inside = asyncio.Event(), asyncio.Semaphore(0)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        inside.release()
        await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    alice, bob = {"x-api-key": ALICE}, {"x-api-key": BOB}
    async with client(slow, api_key_file=str(key_file), key_concurrency=2) as http:
        running = [asyncio.create_task(http.post(CHAT, json={}, headers=alice)) for _ in range(2)]
        for _ in running:
            await inside.acquire()
        refused = await http.post(CHAT, json={}, headers=alice)
        other = asyncio.create_task(http.post(CHAT, json={}, headers=bob))
        await inside.acquire()
        gate.set()
        assert [(await task).status_code for task in (*running, other)] == [200] * 3
        assert (await http.post(CHAT, json={}, headers=alice)).status_code == 200
    assert (refused.status_code, told(refused)["code"]) == (429, "key_concurrency_exceeded")
    assert refused.headers["retry-after"] == "1"


async def test_each_answer_that_a_request_asks_for_takes_a_place_of_its_key(
    client: Client, told: Told, key_file: Path
) -> None:
    gate, inside = asyncio.Event(), asyncio.Semaphore(0)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        inside.release()
        await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async with client(slow, api_key_file=str(key_file), key_concurrency=4) as http:

        async def ask(**body: object) -> httpx.Response:
            return await http.post("/v1/completions", json=body, headers={"x-api-key": ALICE})

        running = asyncio.create_task(ask(prompt=["a", "b"], n=1))
        await inside.acquire()
        refused, never = await ask(n=3), await ask(prompt=["a", "b", "c"], n=2)
        fits = asyncio.create_task(ask(n=2))
        await inside.acquire()
        gate.set()
        assert [(await task).status_code for task in (running, fits)] == [200] * 2
        assert (await ask(n=4)).status_code == 200
    assert (refused.status_code, told(refused)["code"]) == (429, "key_concurrency_exceeded")
    assert (never.status_code, told(never)["code"]) == (400, "invalid_value"), "waiting would not help"


async def test_a_seat_is_free_when_the_client_has_its_answer(client: Client, key_file: Path) -> None:
    gate, inside = asyncio.Event(), asyncio.Semaphore(0)

    async def lingering(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        inside.release()
        await gate.wait()

    async with client(lingering, api_key_file=str(key_file), key_concurrency=1) as http:
        asked = []
        for _ in range(2):
            asked.append(asyncio.create_task(http.post(CHAT, json={}, headers={"x-api-key": ALICE})))
            await inside.acquire()
        gate.set()
        assert [(await task).status_code for task in asked] == [200] * 2
