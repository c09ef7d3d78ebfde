# SPDX-License-Identifier: Apache-2.0
"""Who gets in: everything needs a key but the probes and the files of the page, which hold nothing."""

from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.server.errors import answer
from aerie.server.keys import KeyRing
from aerie.server.page import FILES
from aerie.server.refusals import InvalidApiKey

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", *FILES})


class Authenticate:
    """Answers 401 without a valid key, by `scope["path"]`, whatever the method and the protocol.

    The name of the key is in `scope["state"]["key"]` for whatever comes after; the key itself goes no further.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one connection in, or not."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        presented = _presented(scope)
        name = self.keys.name(presented.pop()) if len(presented) == 1 else None
        if name is not None:
            scope.setdefault("state", {})["key"] = name
            headers = [(header, value) for header, value in scope["headers"] if header not in SECRET_HEADERS]
            await self.app({**scope, "headers": headers}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "a valid API key is needed"})
        else:
            await answer(InvalidApiKey(), scope, receive, send)


SECRET_HEADERS = frozenset({b"authorization", b"x-api-key"})


def _presented(scope: Scope) -> set[str]:
    """The different keys in a request's headers."""
    found = set()
    for header, value in scope["headers"]:
        text = value.decode("latin-1")
        if header == b"authorization":
            scheme, _, text = text.partition(" ")
            found.add(text.strip() if scheme.lower() == "bearer" else "")
        elif header == b"x-api-key":
            found.add(text.strip())
    return found
