# SPDX-License-Identifier: Apache-2.0
"""Load shedding: while the queue is full, a request is refused before its body is read."""

from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.server.errors import Overloaded, answer
from aerie.server.occupancy import LEAST, Occupancy
from aerie.server.routes import works


class Shed:
    """Answers 503 to a request that works, for which the queue has no place, whatever it weighs; all else passes.

    It holds no place while the body is read: clients that send slowly would fill the queue with nothing. `Admission`
    takes the place once the body is there.
    """

    def __init__(self, app: ASGIApp, occupancy: Occupancy) -> None:
        self.app = app
        self.occupancy = occupancy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward or refuse one request."""
        if scope["type"] == "http" and works(scope["method"], scope["path"]):
            try:
                self.occupancy.check(LEAST)
            except Overloaded as error:
                await answer(error, scope, receive, send)
                return
        await self.app(scope, receive, send)
