# SPDX-License-Identifier: Apache-2.0
"""What an engine's errors tell clients: what they did wrong, and nothing of the machine."""

import json
import logging
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.engine_errors import EngineError, engine_error
from aerie.server.errors import answer

MAX_KEPT_BYTES = 64 << 10
LEAKS = (
    re.compile(r'\s*File "[^"]*"(?:, line \d+)?(?:, in \S+)?'),
    re.compile(r"0x[0-9a-fA-F]{6,}"),
    re.compile(r"(?<![\w.])/(?:home|usr|opt|var|tmp|root|lib|mnt|srv|etc|proc|work|models|data)(?:/[^\s'\"]*)+"),
)
log = logging.getLogger(__name__)


class Scrub:
    """Rewrites the engine's error answers: from 500 on a fixed text, below it without addresses, paths and traces."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on and hold back its answer if it is an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        kept = bytearray()

        async def scrubbed(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            elif message["type"] == "http.response.body":
                kept.extend(message.get("body", b"")[: MAX_KEPT_BYTES - len(kept)])
                if not message.get("more_body", False):
                    await self._answer(scope, start, bytes(kept), receive, send)

        await self.app(scope, receive, scrubbed)

    async def _answer(self, scope: Scope, start: Message, body: bytes, receive: Receive, send: Send) -> None:
        status = start["status"]
        if status >= 500:
            request_id = scope.get("state", {}).get("request_id")
            log.error("request %s: the engine answered %d: %s", request_id, status, clean(body)[:500])
            await answer(EngineError(status), scope, receive, send)
            return
        told = clean(body)
        if (error := engine_error(told, scope, status)) is not None:
            await answer(error, scope, receive, send)
            return
        await send_whole(start, told, send)


async def send_whole(head: Message, body: bytes, send: Send) -> None:
    """Send an answer whose body was rewritten, with the length that it has now."""
    headers = [(name, value) for name, value in head.get("headers", ()) if name.lower() != b"content-length"]
    await send({**head, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


def clean(body: bytes) -> bytes:
    """A JSON error body with what would tell of the machine cut out of its texts; another body as it was."""
    try:
        value = json.loads(body)
    except ValueError:
        return _cut(body.decode("utf-8", "replace")).encode()
    return json.dumps(_clean(value)).encode()


def _clean(value: object) -> object:
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    return value


def _cut(text: str) -> str:
    for leak in LEAKS:
        text = leak.sub("…", text)
    return text
