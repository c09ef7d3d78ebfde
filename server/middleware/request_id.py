# SPDX-License-Identifier: Apache-2.0
"""The id of a request: ours inside, the client's own only on the answer."""

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
CLIENTS = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """Gives each request an id of ours, in `scope["state"]["request_id"]` and in the header that vLLM reads.

    The answer carries the client's `X-Request-Id` when it is up to 64 letters, digits, `.`, `_` and `-`, else ours.
    Two clients with the same id therefore never share one inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == HEADER]
        own = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = own
        headers = [*((name, value) for name, value in scope["headers"] if name != HEADER), (HEADER, own.encode())]
        echoed = given[0] if len(given) == 1 and CLIENTS.fullmatch(given[0]) else own.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [(name, value) for name, value in message.get("headers", ()) if name.lower() != HEADER]
                message = {**message, "headers": [*others, (HEADER, echoed)]}
            await send(message)

        await self.app({**scope, "headers": headers}, receive, send_with_id)
