# SPDX-License-Identifier: Apache-2.0
"""How long a request may wait for its first token, and how long it may take; and the way to end every request."""

import asyncio
import math
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.server.errors import ApiError, BadTimeout, QueueTimeout, RequestTimeout, answer
from aerie.server.exchange import Exchange, Exchanges
from aerie.server.routes import OBSERVED, generates

HEADER = "x-request-timeout"


class Deadlines:
    """Makes an exchange of every request but the probes', and ends it when its time is over.

    A client may lower the time for the whole answer with `X-Request-Timeout: SECONDS`; it cannot raise it.
    """

    def __init__(
        self,
        app: ASGIApp,
        exchanges: Exchanges,
        lost: Callable[[], ApiError | None],
        queue_timeout: float,
        request_timeout: float,
    ) -> None:
        self.app = app
        self.exchanges = exchanges
        self.lost = lost
        self.queue_timeout = queue_timeout
        self.request_timeout = request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, for as long as it may take."""
        if scope["type"] != "http" or scope["path"] in OBSERVED:
            await self.app(scope, receive, send)
            return
        try:
            whole = min(self.request_timeout, _asked(scope))
        except BadTimeout as error:
            await answer(error, scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self.lost)
        later = asyncio.get_running_loop().call_later
        timers = [later(whole, exchange.interrupt, RequestTimeout(f"The answer was not complete in {whole:g} s."))]
        if generates(scope["method"], scope["path"]):
            timers.append(later(self.queue_timeout, self._stop_waiting, exchange))
        try:
            with self.exchanges.holding(exchange):
                await exchange.run(self.app)
        finally:
            for timer in timers:
                timer.cancel()

    def _stop_waiting(self, exchange: Exchange) -> None:
        if exchange.waiting:
            exchange.interrupt(QueueTimeout(f"The answer did not begin in {self.queue_timeout:g} s."))


def _asked(scope: Scope) -> float:
    text = Headers(scope=scope).get(HEADER)
    if text is None:
        return math.inf
    try:
        seconds = float(text)
    except ValueError:
        raise BadTimeout from None
    if not seconds > 0:
        raise BadTimeout
    return seconds
