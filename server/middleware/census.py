# SPDX-License-Identifier: Apache-2.0
"""Counts every answer, by route and status."""

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.metrics import Metrics
from aerie.server.routes import label


class Census:
    """The outermost of ours: what the others refuse is counted too, by the reason they leave in `scope["state"]`."""

    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self.metrics = metrics
        self.clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request and count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status: int | None = None
        began = self.clock()

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, count)
        finally:
            seconds = self.clock() - began
            self.metrics.answered(label(scope["path"]), status, seconds, state.get("refusal"))
