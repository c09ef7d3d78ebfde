# SPDX-License-Identifier: Apache-2.0
"""What a request may say to the engine."""

import json
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.errors import ApiError, answer
from aerie.server.front_settings import LimitSettings
from aerie.server.grammars.constraints import Checker, hold, stated
from aerie.server.keys import Salts
from aerie.server.middleware.json_body import off_the_loop
from aerie.server.rules.check import check_body, salt_cache
from aerie.server.rules.facts import Facts

FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
"""They told of the bytes that came, not of those that are passed on."""


class RequestRules:
    """Refuses bodies that break a rule with 400 and the parameter's name. Stands right before a loaded engine.

    Works on the object that `JsonBody` left in `scope["state"]["body"]`, and passes that on. Leaves the length of the
    context in `["context"]`, for what is said of prompts that are too long.
    """

    def __init__(self, app: ASGIApp, facts: Facts, limits: LimitSettings, *, grammars: Checker | None = None) -> None:
        """`grammars` tries the grammars of requests, where xgrammar compiles them."""
        self.app = app
        self.facts = facts
        self.limits = limits
        self.grammars = grammars
        self.salts = Salts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        state = scope.get("state", {})
        route = scope.get("path", "")
        if scope["type"] == "http" and "body" in state and route in self.facts.shapes:
            size = state["body_bytes"]
            state["context"] = self.facts.context
            try:
                await off_the_loop(size, partial(check_body, state["body"], route, self.facts, self.limits))
                if self.grammars is not None:
                    await hold(stated(state["body"]), self.grammars)
                salt_cache(state["body"], route, state.get("key"), self.facts, self.salts)
            except ApiError as refusal:
                await answer(refusal, scope, receive, send)
                return
            headers = [(name, value) for name, value in scope["headers"] if name not in FRAMING_HEADERS]
            written = await off_the_loop(size, partial(_written, state["body"]))
            scope, receive = {**scope, "headers": headers}, _rewritten(written, receive)
        await self.app(scope, receive, send)


def _written(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _rewritten(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the checked object, written anew, in the place of the bytes it was read from.

    No two parsers can then differ about those bytes.
    """
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        message = await receive()
        while message["type"] == "http.request" and message.get("more_body", False):
            message = await receive()
        if message["type"] == "http.disconnect":
            return message
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
