# SPDX-License-Identifier: Apache-2.0
"""What happens to a connection between two requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send
from tests.server.door.wire import CLOSE, SOON, Serve, hello, say, status

from aerie.server.settings import ServeSettings

REFUSED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def kept(port: int) -> AsyncIterator[Streams]:
    """A connection that has had an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\nhi")
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_a_new_connection_takes_the_place_of_the_one_longest_idle(serve: Serve) -> None:
    async with serve(max_connections=2) as port, kept(port) as (first, _), kept(port) as (second, _):
        assert status(await say(port, b"GET /livez HTTP/1.1\r\n" + CLOSE + b"\r\n")) == 200
        async with asyncio.timeout(SOON):
            assert await first.read() == b""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.read(), 0.1)


async def test_an_idle_connection_outlives_a_clients_pool_and_not_the_limit(serve: Serve) -> None:
    """httpx, and so the official clients, keep connections for 5 s; uvicorn closes them after as long by default."""
    assert ServeSettings().keep_alive_seconds > 60
    async with serve(keep_alive_seconds=1) as port, kept(port) as (reader, _), asyncio.timeout(SOON):
        assert await reader.read() == b""


async def test_a_byte_between_requests_buys_no_more_than_the_headers_time(serve: Serve) -> None:
    async with serve(header_seconds=0.3) as port, kept(port) as (reader, writer), asyncio.timeout(SOON):
        writer.write(b"\r\n")
        assert await reader.read() == b""


async def test_a_body_that_comes_after_its_refusal_ends_no_wait(serve: Serve) -> None:
    """Its last byte begins the time for which an idle connection is kept, and not the headers'."""
    async with serve(header_seconds=0.3, max_connections=9) as port, kept(port) as (reader, writer):
        async with asyncio.timeout(SOON):
            writer.write(REFUSED)
            assert b"415" in await reader.readline()
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.05)
            writer.write(b"{}")
            await asyncio.sleep(1)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\nhi")


async def test_half_a_body_after_its_refusal_is_not_waited_for(serve: Serve) -> None:
    async with serve(header_seconds=0.3) as port, kept(port) as (reader, writer), asyncio.timeout(SOON):
        writer.write(REFUSED)
        assert b"415" in await reader.readline()
        await asyncio.sleep(0.05)
        writer.write(b"{")
        await reader.read()
        assert reader.at_eof()


async def test_a_client_may_connect_long_before_it_asks(serve: Serve) -> None:
    async with serve(header_seconds=0.3) as port, asyncio.timeout(SOON):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(1)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\nhi")
        writer.close()


async def test_who_says_nothing_makes_room(serve: Serve) -> None:
    async with serve(max_connections=1) as port, asyncio.timeout(SOON):
        silent, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
        assert status(await say(port, b"GET /livez HTTP/1.1\r\n" + CLOSE + b"\r\n")) == 200
        assert await silent.read() == b""
        writer.close()


async def test_who_is_within_its_headers_makes_room_after_the_idle_ones(serve: Serve) -> None:
    async with serve(max_connections=2, header_seconds=60) as port, kept(port) as (idle, _), asyncio.timeout(SOON):
        half_open, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nX: ")
        await asyncio.sleep(0.05)
        assert status(await say(port, b"GET /livez HTTP/1.1\r\n" + CLOSE + b"\r\n")) == 200
        assert await idle.read() == b""
        writer.write(b"y\r\n" + CLOSE + b"\r\n")
        assert (await half_open.read()).endswith(b"\r\nhi")
        writer.close()


async def test_half_open_ones_keep_nobody_out(serve: Serve) -> None:
    """A flood of them, each the last word of its client, and a client that wants an answer."""
    async with serve(max_connections=4, header_seconds=60) as port:
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
        for _, writer in flood:
            writer.write(b"GET /v1/models HTTP/1.1\r\nX: ")
        await asyncio.sleep(0.05)
        for _ in range(3):
            assert status(await say(port, b"GET /livez HTTP/1.1\r\n" + CLOSE + b"\r\n")) == 200
        for _, writer in flood:
            writer.close()


@pytest.mark.parametrize("failure", [ZeroDivisionError, asyncio.CancelledError])
async def test_what_fails_after_its_answer_breaks_no_second_one(serve: Serve, failure: type[BaseException]) -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        await asyncio.sleep(0.1)
        raise failure

    async with serve(late) as port, kept(port) as (reader, writer), asyncio.timeout(SOON):
        await asyncio.sleep(0.3)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\nhi")
