# SPDX-License-Identifier: Apache-2.0
"""Clients behind a real nginx, which keeps its connections to us and hands upgrades on, as its manual shows."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send
from tests.server.door.wire import Serve, status

from aerie.server.keys import make_key

ROUNDS, PATIENCE = 6, 60.0
CONFIGURATION = """
daemon off;
master_process off;
error_log stderr;
pid {folder}/pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream aerie {{ server 127.0.0.1:{port}; keepalive 1; }}
    server {{
        listen unix:{folder}/socket;
        location / {{
            proxy_pass http://aerie;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""


async def listens(socket: Path) -> bool:
    """Whether somebody takes connections there."""
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@asynccontextmanager
async def nginx(port: int, folder: Path) -> AsyncIterator[Path]:
    """The socket of a proxy before `port`."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("nginx is not installed; on Debian, `apt-get install nginx-light` does it")
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port))
    process = await asyncio.create_subprocess_exec(program, "-e", "stderr", "-p", str(folder), "-c", str(configuration))
    socket = folder / "socket"
    try:
        async with asyncio.timeout(PATIENCE):
            while not await listens(socket):
                assert process.returncode is None
                await asyncio.sleep(0.01)
        yield socket
    finally:
        process.terminate()
        await process.wait()


async def ask(socket: Path, request: bytes) -> bytes:
    """The answer to the one request of a client."""
    reader, writer = await asyncio.open_unix_connection(socket)
    async with asyncio.timeout(PATIENCE):
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer


@pytest.mark.parametrize("ending", [b"", b"\r\n\r\n"], ids=["prefix", "whole request"])
async def test_nobody_prefixes_the_request_of_the_next_client(serve: Serve, tmp_path: Path, ending: bytes) -> None:
    key, line = make_key("alice")
    keys = tmp_path / "keys"
    keys.write_text(line)
    sources: list[tuple[str, int]] = []

    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        sources.append(scope["client"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"mine!"})

    # More than one read takes, so that it comes in several; parsers skip empty lines before a request.
    smuggled = b"\r\n" * (256 << 10) + b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Swallowed: a" + ending
    attack = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nUpgrade: x\r\n"
    attack += b"Connection: Upgrade, close\r\nContent-Length: %d\r\n\r\n" % len(smuggled) + smuggled
    asked = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nx-api-key: %b\r\nConnection: close\r\n\r\n" % key.encode()
    async with serve(tell, api_key_file=str(keys), max_header_bytes="1MiB") as port, nginx(port, tmp_path) as socket:
        for _ in range(ROUNDS):
            assert status(await ask(socket, attack)) == 401
            assert (await ask(socket, asked)).endswith(b"\r\nmine!")
    assert len(set(sources)) == 1, "the proxy keeps its connection, so that requests of several clients share it"
