# SPDX-License-Identifier: Apache-2.0
"""A real uvicorn, as `aerie serve` configures it, and what tests say to it over a bare socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.server import checks
from aerie.server.house import House
from aerie.server.plan import make_plan
from aerie.server.run import Server, uvicorn_config
from aerie.server.settings import ServeSettings

SOON = 5.0
HEADER_KIB = 4
CLOSE = b"Host: x\r\nConnection: close\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + CLOSE
KNOWN = {
    "header_seconds": 0.3,
    "body_seconds": 0.3,
    "max_header_bytes": f"{HEADER_KIB}KiB",
    "max_body_bytes": "64KiB",
    "allowed_hosts": "*",
}
Serve = Callable[..., AbstractAsyncContextManager[int]]


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@asynccontextmanager
async def served(model: Path, application: ASGIApp = hello, **settings: object) -> AsyncIterator[int]:
    """The port of an engine that says hi, or of `application`, behind the front door."""
    chosen = ServeSettings.model_validate({"model": str(model), **KNOWN, **settings})
    house = House(chosen)
    house.readiness.open(application, lambda: False)
    server = Server(uvicorn_config(make_plan(chosen), house))
    with checks.listen("127.0.0.1", 0) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def say(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Everything that comes back for these bytes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""

    async def listen() -> None:
        nonlocal answer
        while part := await reader.read(1 << 16):
            answer += part

    async with asyncio.timeout(SOON):
        listening = asyncio.create_task(listen())
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
        with contextlib.suppress(ConnectionError):
            await listening
    writer.close()
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])
