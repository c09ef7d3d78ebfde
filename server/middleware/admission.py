# SPDX-License-Identifier: Apache-2.0
"""A bounded queue: a request that would wait too long behind others is refused at once."""

from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.server.errors import Overloaded, answer
from aerie.server.front_settings import LimitSettings
from aerie.server.occupancy import Occupancy, weigh
from aerie.server.routes import generates


class Admission:
    """Lets a generating request in when there is room for it, and refuses it otherwise; everything else passes.

    Weighs the object that `JsonBody` left in `scope["state"]`. `Shed`, before that, refuses what no body could change.
    """

    def __init__(self, app: ASGIApp, occupancy: Occupancy, limits: LimitSettings) -> None:
        self.app = app
        self.occupancy = occupancy
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward or refuse one request."""
        if scope["type"] != "http" or not generates(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        state = scope["state"]
        weight = weigh(state["body"], state["body_bytes"], self.occupancy.capacity.longest, self.limits)
        try:
            with self.occupancy.holding(weight):
                await self.app(scope, receive, send)
        except Overloaded as error:
            await answer(error, scope, receive, send)
