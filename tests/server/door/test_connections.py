# SPDX-License-Identifier: Apache-2.0
"""Clients that do not speak HTTP as they should, against a real uvicorn."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from tests.server.door.wire import CLOSE, HEADER_KIB, POST, Serve, hello, say, status

from aerie.server import transports
from aerie.server.transports import WriteWatch

PATIENCE = 60.0
"""Of tests that wait for what must happen, however slow the machine."""


async def test_a_plain_request_is_answered(serve: Serve) -> None:
    async with serve() as port:
        assert (await say(port, b"GET /v1/models HTTP/1.1\r\n" + CLOSE + b"\r\n")).endswith(b"\r\n\r\nhi")


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /livez HTTP/1.1\r\nX: " + b"a" * (HEADER_KIB << 10),
        b"GET /livez HTTP/1.1\r\n" + b"X: a\r\n" * 129,
        b"GET /livez HTTP/1.1\r\n" + b"".join(b"X%d: %s\r\n" % (n, b"a" * 100) for n in range(60)),
        b"GET /" + b"a" * (HEADER_KIB << 10) + b" HTTP/1.1\r\n",
    ],
)
async def test_long_and_many_headers_are_refused(serve: Serve, request_head: bytes) -> None:
    async with serve() as port:
        assert status(await say(port, request_head + b"\r\n\r\n")) == 431
        assert status(await say(port, b"GET /livez HTTP/1.1\r\n" + CLOSE + b"\r\n")) == 200


@pytest.mark.parametrize("prefix", [b"GET /livez HTTP/1.1\r\nX: ", b"GET /", b"GET /livez HTTP/1.1\r\n" + b"X" * 10])
async def test_an_endless_header_is_not_collected(serve: Serve, prefix: bytes) -> None:
    async with serve(header_seconds=60) as port:
        answer = await say(port, prefix, *[b"a" * 1024] * 1024)
    assert answer == b"" or status(answer) in (400, 431)


async def test_endless_trailers_and_chunk_extensions_are_not_collected(serve: Serve) -> None:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    async with serve(body_seconds=60) as port:
        for part in (b"2\r\n{}\r\n0\r\nX: ", b"2;x="):
            await say(port, head + part, *[b"a" * 1024] * 1024)


@pytest.mark.parametrize("part", [b"GET /livez HTTP/1.1\r\nX: ", b"", b"\r\n", b"G"])
async def test_headers_that_do_not_end_are_given_up(serve: Serve, part: bytes) -> None:
    """And those that do not begin, as a connection between requests is."""
    async with serve(keep_alive_seconds=60 if part else 1) as port:
        assert b"200" not in await say(port, part)


async def test_one_byte_at_a_time_is_given_up_on_a_second_request_too(serve: Serve) -> None:
    first = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serve() as port:
        answer = await say(port, first, *[bytes([byte]) for byte in first[:-2]], pause=0.02)
    assert answer.count(b"HTTP/1.1 200") == 1


async def test_a_body_that_does_not_end_is_given_up(serve: Serve) -> None:
    async with serve() as port:
        for framing in (b"Content-Length: 10\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
            answer = await say(port, POST + framing)
            assert status(answer) == 408
            assert b"connection: close" in answer.lower()


async def test_an_endless_body_is_refused(serve: Serve) -> None:
    async with serve() as port:
        chunks = [b"400\r\n" + b" " * 1024 + b"\r\n"] * 1024
        answer = await say(port, POST + b"Transfer-Encoding: chunked\r\n\r\n", *chunks)
        assert answer == b"" or status(answer) == 413
        for length in (b"2000000000", b"99999999999999999999"):
            assert status(await say(port, POST + b"Content-Length: " + length + b"\r\n\r\n")) in (400, 413)


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: +2\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_framing_that_two_parsers_could_read_differently_is_refused(serve: Serve, framing: bytes) -> None:
    async with serve() as port:
        answer = await say(port, POST + framing)
    assert status(answer) == 400
    assert not answer.endswith(b"hi")


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v1/models HTTP/1.1\r\n" + CLOSE + b"\r\n"
    async with serve() as port:
        answer = await say(port, one * 20 + last)
    assert answer.count(b"HTTP/1.1 200") == 21
    assert answer.endswith(b"hi")


@pytest.mark.parametrize(
    "target", [b"//v1/models", b"/v1/./models", b"/livez/../v1/models", b"/V1/models", b"/v1%2f..%2fv1/models", b"*"]
)
async def test_a_path_is_what_it_says(serve: Serve, target: bytes) -> None:
    async with serve() as port:
        assert status(await say(port, b"GET " + target + b" HTTP/1.1\r\n" + CLOSE + b"\r\n")) in (400, 404)


async def test_no_websocket_is_opened(serve: Serve) -> None:
    upgrade = (
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"
    )
    async with serve() as port:
        answer = await say(port, b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
    assert status(answer) == 404


async def test_connections_are_counted(serve: Serve) -> None:
    """Those that wait for an answer; `test_keep_alive.py` has those that make room."""
    ended = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await ended.wait()
        await hello(scope, receive, send)

    ping = b"GET /livez HTTP/1.1\r\n" + CLOSE + b"\r\n"
    async with serve(slow, max_connections=3) as port:
        asking = [asyncio.create_task(say(port, b"GET /v1/models HTTP/1.1\r\n" + CLOSE + b"\r\n")) for _ in range(3)]
        while await say(port, ping):
            await asyncio.sleep(0.01)
        ended.set()
        assert all(answer.endswith(b"\r\nhi") for answer in await asyncio.gather(*asking))
        assert status(await say(port, ping)) == 200


@asynccontextmanager
async def deaf(port: int) -> AsyncIterator[None]:
    """A client that asks and reads nothing; its kernel takes little for it."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, POST + b"Content-Length: 2\r\n\r\n{}")
        yield


async def test_a_stream_that_is_not_read_ends_and_its_request_with_it(serve: Serve) -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                await asyncio.sleep(0)  # an engine's tokens are waited for; what is sent to nobody is not
                yield b"x" * (64 << 10)
        finally:
            ended.set()

    async with (
        serve(StreamingResponse(endless(), media_type="text/event-stream"), write_seconds=0.2) as port,
        deaf(port),
        asyncio.timeout(PATIENCE),
    ):
        await ended.wait()


async def test_an_answer_that_is_whole_but_not_read_holds_no_connection_either(serve: Serve) -> None:
    large = Response(b"x" * (32 << 20))
    async with (
        serve(large, write_seconds=0.2, max_connections=1) as port,
        deaf(port),
        asyncio.timeout(PATIENCE),
    ):
        while not await say(port, b"GET /livez HTTP/1.1\r\n" + CLOSE + b"\r\n"):
            await asyncio.sleep(0.05)


class Draining:
    """A transport of which so many bytes wait, at each look."""

    def __init__(self, *waiting: int) -> None:
        self.waiting = list(waiting)
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.waiting.pop(0)

    def abort(self) -> None:
        self.aborted.set()


async def test_a_client_that_reads_slowly_is_waited_for() -> None:
    transport = Draining(9, 8, 8, 3, 3, 3)  # a look, and the beginning of the next wait
    WriteWatch(transport, 0.0).begin()  # type: ignore[arg-type]  # what it needs of a transport
    async with asyncio.timeout(PATIENCE):
        await transport.aborted.wait()
    assert transport.waiting == []


async def test_a_refusal_of_a_body_is_readable(serve: Serve) -> None:
    async with serve() as port:
        answer = await say(port, POST + b'Content-Length: 9\r\n\r\n{"n":NaN}')
    assert status(answer) == 400
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["param"] == "n"


async def test_a_refusal_reaches_a_client_that_sends_all_before_it_reads(serve: Serve) -> None:
    """The server reads on for a while: a socket closed with bytes unread answers with a reset instead."""
    loop = asyncio.get_running_loop()
    async with serve() as port, asyncio.timeout(PATIENCE):
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, POST + b"Content-Length: 8000000\r\n\r\n")
            for _ in range(80):
                await asyncio.sleep(0)
                await loop.sock_sendall(client, b" " * 100_000)
            assert status(await loop.sock_recv(client, 1 << 16)) == 413
            assert await loop.sock_recv(client, 1) == b""


async def send_without_end(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def test_a_closed_connection_is_read_for_a_while_only(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "LINGER_SECONDS", 0.1)
    async with serve() as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"Content-Length: 8000000\r\n\r\n")
        assert status(await reader.read()) == 413
        with pytest.raises(ConnectionError):
            await send_without_end(writer)
