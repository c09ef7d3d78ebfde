# SPDX-License-Identifier: Apache-2.0
"""The body of a request: read once, bounded in size and time, parsed strictly, and replayed."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.errors import ApiError, answer
from aerie.server.refusals import BadRequest, BodyTooLarge, BodyTooSlow, WrongMediaType
from aerie.server.strict_json import parse

LARGE_BYTES = 16 << 10
"""Bodies of this length take a few milliseconds to parse and to hold against the rules."""


T = TypeVar("T")


async def off_the_loop(size: int, work: Callable[[], T]) -> T:
    """What `work` returns for a body of `size` bytes: of a large one it runs in a thread, beside the event loop."""
    return await asyncio.to_thread(work) if size > LARGE_BYTES else work()


class ClientLeft(Exception):  # noqa: N818 - not an error: nobody waits for an answer
    """The client went away while its body was read."""


class JsonBody:
    """Refuses bodies that are no JSON object, and replays the bytes of others.

    Leaves the object in `scope["state"]["body"]` and its length in bytes in `["body_bytes"]`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float, max_depth: int, max_values: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.max_depth = max_depth
        self.max_values = max_values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read one body and pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
            if scope["method"] == "POST":
                parsed = await self._parse(body)
                scope.setdefault("state", {}).update(body=parsed, body_bytes=len(body))
            else:
                body = b""
        except ClientLeft:
            return
        except ApiError as refusal:
            await answer(refusal, scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        if not announced.isascii() or not announced.isdigit() or int(announced[:20]) > self.max_bytes:
            raise self._too_large()
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise WrongMediaType("Encoded bodies are not accepted; send plain JSON.")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and media_type != "application/json":
            raise WrongMediaType("The content type must be application/json.")
        try:
            async with asyncio.timeout(self.seconds):
                return await self._collect(receive)
        except TimeoutError:
            raise BodyTooSlow from None

    async def _collect(self, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        length = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            length += len(chunk)
            if length > self.max_bytes:
                raise self._too_large()
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _parse(self, body: bytes) -> dict[str, Any]:
        value = await off_the_loop(len(body), partial(parse, body, self.max_depth, self.max_values))
        if not isinstance(value, dict):
            raise BadRequest(None, "The body must be a JSON object.", "invalid_json")
        return value

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is longer than {self.max_bytes} bytes.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and after it whatever the connection gives."""
    ahead: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return ahead.pop() if ahead else await receive()

    return replayed
