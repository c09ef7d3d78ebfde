# SPDX-License-Identifier: Apache-2.0
"""The body: its size, its time, its form."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]


async def test_a_body_arrives_once_as_it_was_sent(client: Client) -> None:
    body = {
        "text": "Grüße 👋 \u0000",
        "numbers": [1, -(2**63), 2**63 - 1, 0.1, -0.0, 5e-324],
        "deep": {"er": [None, True]},
    }
    async with client() as http:
        arrived = (await http.post(CHAT, json=body)).json()
    assert arrived["body"] == body


async def test_a_body_in_chunks_is_put_together(client: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for part in (b'{"a"', b": ", b"1}"):
            yield part

    async with client() as http:
        assert (await http.post(CHAT, content=chunks(), headers=JSON)).json()["body"] == {"a": 1}


async def test_a_body_is_too_long_when_it_says_so_and_when_it_does_not(client: Client, told: Told) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1024
            yield b" " * 1024

    async with client(max_body_bytes="4KiB") as http:
        announced = await http.post(CHAT, content=b" " * 4097, headers=JSON)
        chunked = await http.post(CHAT, content=endless(), headers=JSON)
        fits = await http.post(CHAT, content=b'{"a":"' + b"a" * (4096 - 8) + b'"}', headers=JSON)
    assert (announced.status_code, chunked.status_code, fits.status_code) == (413, 413, 200)
    assert told(announced)["code"] == told(chunked)["code"] == "request_too_large"
    assert sent <= 8192, "read no further than to know"


async def test_a_slow_body_is_given_up(client: Client, told: Told) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with client(body_seconds=0.05) as http:
        answer = await http.post(CHAT, content=slow(), headers=JSON)
    assert (answer.status_code, told(answer)["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
async def test_an_encoded_body_is_not_unpacked(client: Client, told: Told, encoding: str) -> None:
    async with client() as http:
        answer = await http.post(CHAT, content=gzip.compress(b"{}"), headers={**JSON, "Content-Encoding": encoding})
    assert (answer.status_code, told(answer)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "x/json"])
async def test_what_a_page_can_send_without_asking_is_refused(client: Client, kind: str) -> None:
    async with client() as http:
        assert (await http.post(CHAT, content=b"{}", headers={"Content-Type": kind})).status_code == 415


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_is_json(client: Client, kind: str) -> None:
    async with client() as http:
        assert (await http.post(CHAT, content=b"{}", headers={"Content-Type": kind})).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"temperature": NaN}', "temperature"),
        ('{"a": [{"b": Infinity}]}', "a[0].b"),
        ('{"a": -Infinity}', "a"),
        ('{"a": 1e309}', "a"),
        ('{"a": -1e999}', "a"),
        ('{"n": 9223372036854775808}', "n"),
        ('{"n": ' + "9" * 100_000 + "}", "n"),
        ('{"n": 1, "n": 2}', "n"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "a.b"),
        ('{"a": ["\\ud800"]}', "a[0]"),
        ('{"\\udfff": 1}', None),
        ('{"a": ' + "[" * 65 + "]" * 65 + "}", "a" + "[0]" * 63),
        ('{"a": ' + "[" * 500_000, None),
        ('{"a": ' + '{"a":' * 500_000, None),
        ("", None),
        ("{", None),
        ("[]", None),
        ("3", None),
        ("{} {}", None),
        ("{'a': 1}", None),
        ('{"a": 01}', None),
        ('{"a": "\t"}', None),
        ("\ufeff{}", None),
    ],
)
async def test_only_json_is_json(client: Client, told: Told, body: str, param: str | None) -> None:
    async with client() as http:
        answer = await http.post(CHAT, content=body.encode(), headers=JSON)
    error = told(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_json", param)
    assert len(answer.content) < 1024, "an error does not repeat the request"


@pytest.mark.parametrize("body", [b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}', '{"a": 1}'.encode("utf-16")])
async def test_only_utf_8_is_text(client: Client, body: bytes) -> None:
    async with client() as http:
        assert (await http.post(CHAT, content=body, headers=JSON)).status_code == 400


async def test_a_long_name_is_not_repeated_whole(client: Client, told: Told) -> None:
    async with client() as http:
        answer = await http.post(CHAT, content=json.dumps({"a" * 100_000: float("nan")}).encode(), headers=JSON)
    assert len(told(answer)["param"]) < 100


async def test_the_body_of_a_get_goes_no_further(client: Client) -> None:
    async with client() as http:
        arrived = (await http.request("GET", "/v1/models", content=b'{"n": NaN}')).json()
    assert arrived["body"] is None
