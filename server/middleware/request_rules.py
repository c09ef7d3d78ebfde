# SPDX-License-Identifier: Apache-2.0
"""What a request may say to the engine."""

import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.errors import ApiError, answer
from aerie.server.front_settings import LimitSettings
from aerie.server.grammars.constraints import Checker, hold, stated
from aerie.server.keys import Salts
from aerie.server.rules.check import check_body, salt_cache
from aerie.server.rules.facts import Facts

FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
"""They told of the bytes that came, not of those that are passed on."""


class RequestRules:
    """Refuses bodies that break a rule with 400 and the parameter's name. Stands right before a loaded engine.

    Works on the object that `JsonBody` left in `scope["state"]["body"]`, and passes that on.
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
            try:
                check_body(state["body"], route, self.facts, self.limits)
                if self.grammars is not None:
                    await hold(stated(state["body"]), self.grammars)
                salt_cache(state["body"], route, state.get("key"), self.facts, self.salts)
            except ApiError as refusal:
                await answer(refusal, scope, receive, send)
                return
            headers = [(name, value) for name, value in scope["headers"] if name not in FRAMING_HEADERS]
            scope, receive = {**scope, "headers": headers}, _rewritten(state["body"], receive)
        await self.app(scope, receive, send)


def _rewritten(body: dict[str, Any], receive: Receive) -> Receive:
    """A `receive` that gives the checked object in the place of the bytes it was read from.

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
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    return replayed
