# SPDX-License-Identifier: Apache-2.0
"""Where one request ends and the next begins, and what of its head counts, against a real uvicorn."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from tests.server.door.wire import CLOSE, HEADER_KIB, POST, SOON, Serve, say, status

from aerie.server.keys import make_key

GET = b"GET /v1/models HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
JSON = b"Content-Type: application/json\r\n"
OFFERS = [
    b"Connection: Upgrade\r\nUpgrade: x\r\n",
    b"Connection: upgrade, keep-alive\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    text = json.dumps({"body": body.decode(), "headers": headers}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


def answers(received: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Status and JSON of every answer, each with its length."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append((status(head), json.loads(rest[:length])))
        received = rest[length:]
    return found


def told(received: bytes) -> tuple[int, str]:
    """Status and code of a single answer, which is an error."""
    ((code, body),) = answers(received)
    return code, body["error"]["code"]


@pytest.mark.parametrize("split", [False, True], ids=["one packet", "more packets"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upgrade_is_declined_and_the_body_stays_a_body(serve: Serve, chunked: bool, split: bool) -> None:
    smuggled = b'{"a": "GET /livez HTTP/1.1\\r\\n"}'
    framing, body = b"Content-Length: %d\r\n\r\n" % len(smuggled), smuggled
    if chunked:
        framing, body = b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
    last = GET + CLOSE + b"\r\n"
    async with serve(echo) as port:
        for offer in OFFERS:
            head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + offer + framing
            sent = [head[:30], head[30:], body[:9], body[9:], last] if split else [head + body + last]
            posted, asked = answers(await say(port, *sent, pause=0.01))
            assert posted[0] == asked[0] == 200
            assert (posted[1]["body"], asked[1]["body"]) == (smuggled.decode(), "")
            assert not {"upgrade", "http2-settings"} & set(posted[1]["headers"])
            assert "upgrade" not in posted[1]["headers"]["connection"].lower()


@pytest.mark.parametrize("smuggled", [b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /a HTTP/1.1\r\nX: "])
async def test_a_body_behind_an_upgrade_is_no_request(serve: Serve, smuggled: bytes) -> None:
    async with serve() as port:
        for offer in OFFERS:
            head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + offer
            head += b"Content-Length: %d\r\n\r\n" % len(smuggled)
            received = await say(port, head, smuggled, GET + CLOSE + b"\r\n", pause=0.01)
            first, second = received.split(b"HTTP/1.1 ")[1:]
            assert first.startswith(b"400 ")
            assert b"invalid_json" in first
            assert second.endswith(b"hi")


async def test_many_upgrades_in_one_packet_are_as_many_requests(serve: Serve) -> None:
    async with serve() as port:
        received = await say(port, (GET + HOST + OFFERS[0] + b"\r\n") * 50 + GET + CLOSE + OFFERS[2] + b"\r\n")
    assert received.count(b"HTTP/1.1 200") == 51


async def test_an_upgrade_is_bound_by_the_limits_of_headers(serve: Serve) -> None:
    async with serve() as port:
        long = GET + HOST + OFFERS[0] + b"X: " + b"a" * (HEADER_KIB << 10) + b"\r\n\r\n"
        assert status(await say(port, long)) == 431


@pytest.mark.parametrize("split", [False, True], ids=["one packet", "more packets"])
async def test_trailers_are_no_headers(serve: Serve, tmp_path: Path, split: bool) -> None:
    key, line = make_key("alice")
    keys = tmp_path / "keys"
    keys.write_text(line)
    head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + b"Trailer: x-api-key\r\nTransfer-Encoding: chunked\r\n"
    parts = [b"\r\n", b"2\r\n{}\r\n", b"0\r\n", b"X-Api-Key: %b\r\nX-Other: 1\r\n" % key.encode(), b"\r\n"]
    authorised = b"X-Api-Key: %b\r\n" % key.encode()
    last = GET + CLOSE + authorised + b"\r\n"

    def packets(*sent: bytes) -> tuple[bytes, ...]:
        return sent if split else (b"".join(sent),)

    async with serve(echo, api_key_file=str(keys)) as port:
        refused, _ = answers(await say(port, *packets(head, *parts), last, pause=0.02))
        answered, _ = answers(await say(port, *packets(head + authorised, *parts), last, pause=0.02))
    assert (refused[0], refused[1]["error"]["code"]) == (401, "invalid_api_key")
    assert (answered[0], answered[1]["body"]) == (200, "{}")
    assert "x-other" not in answered[1]["headers"]


REFUSED_HEADS = [
    (GET, (400, "invalid_http")),
    (GET + b"Host: a\r\nHost: b\r\n", (400, "invalid_http")),
    (GET + b"Host: a\r\nHost: a\r\n", (400, "invalid_http")),
    (b"GET /v1/models HTTP/1.0\r\nHost: a\r\nHost: a\r\n", (400, "invalid_http")),
    *((GET + b"Host: " + host + b"\r\n", (400, "invalid_http")) for host in (b"a b", b"a/", b"a@b", b"[a", b"a:b")),
    (b"GET http://b/v1/models HTTP/1.1\r\nHost: a\r\n", (400, "invalid_http")),
    (b"GET /v1/models\r\n", (400, "invalid_http")),
    (b"GET /v1/models HTTP/0.9\r\nHost: a\r\n", (400, "invalid_http")),
    (b"GET /v1/models HTTP/2.0\r\nHost: a\r\n", (505, "unsupported_http_version")),
    (b"GET /v1/models HTTP/1.2\r\nHost: a\r\n", (400, "invalid_http")),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", (400, "invalid_http")),
    (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n", (501, "not_implemented")),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01", (400, "invalid_http")),
]


async def test_a_head_that_is_not_http_1_1_is_refused(serve: Serve) -> None:
    async with serve() as port:
        for head, error in REFUSED_HEADS:
            assert told(await say(port, head + b"\r\n")) == error, head


async def test_every_name_of_a_host_is_one(serve: Serve) -> None:
    async with serve() as port:
        for host in (b"", b"a", b"a.b:80", b"a_b", b"1.2.3.4", b"[::1]", b"[::1]:8000", b"a:"):
            answer = await say(port, GET + b"Connection: close\r\nHost: " + host + b"\r\n\r\n")
            assert answer.endswith(b"\r\nhi"), host


async def test_old_clients_and_those_of_proxies_are_served(serve: Serve) -> None:
    async with serve() as port:
        for line in (b"GET /v1/models HTTP/1.0", b"GET http://x/v1/models HTTP/1.1"):
            assert (await say(port, line + b"\r\n" + CLOSE + b"\r\n")).endswith(b"\r\nhi")
        assert (await say(port, b"GET /v1/models HTTP/1.0\r\n\r\n")).endswith(b"\r\nhi")


async def test_no_transfer_coding_but_chunked_is_known(serve: Serve) -> None:
    async with serve() as port:
        for codings, error in (
            ((b"gzip, chunked", b"gzip", b"identity", b"xchunked"), (501, "not_implemented")),
            ((b"chunked, chunked", b"chunked, gzip"), (400, "invalid_http")),  # bodies without an end
        ):
            for coding in codings:
                framing = b"Transfer-Encoding: " + coding + b"\r\n\r\n"
                assert told(await say(port, POST + framing + b"2\r\n{}\r\n0\r\n\r\n")) == error, coding


async def test_a_transfer_coding_is_named_once_and_not_in_http_1_0(serve: Serve) -> None:
    async with serve() as port:
        twice = b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        assert told(await say(port, POST + twice)) == (501, "not_implemented")
        old = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        assert told(await say(port, old)) == (400, "invalid_http")


async def test_a_refusal_speaks_the_language_of_its_route(serve: Serve) -> None:
    async with serve() as port:
        ((code, body),) = answers(await say(port, b"POST /v1/messages HTTP/1.1\r\n\r\n"))
    assert (code, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")


async def test_what_is_no_request_leaves_the_answers_before_it_whole(serve: Serve) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"be", "more_body": True})
        begun.set()
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"en"})

    async with serve(slow) as port, asyncio.timeout(SOON):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + HOST + b"\r\n")
        await begun.wait()
        writer.write(b"no request\r\n\r\n" + GET + HOST + b"\r\n")
        await asyncio.sleep(0.05)
        go_on.set()
        received = await reader.read()
        writer.close()
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"\r\n\r\nbeen")


async def test_a_body_that_breaks_off_ends_its_request(serve: Serve) -> None:
    async with serve(body_seconds=60) as port:
        received = await say(port, POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{", b"\r\nzz\r\n", pause=0.02)
    assert told(received) == (400, "invalid_http")
