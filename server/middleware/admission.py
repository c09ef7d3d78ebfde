# SPDX-License-Identifier: Apache-2.0
"""A bounded queue: a request that would wait too long behind others is refused at once."""

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.server.errors import ApiError, Overloaded, answer
from aerie.server.front_settings import LimitSettings
from aerie.server.occupancy import LEAST, Occupancy, Weight, weigh
from aerie.server.refusals import BadRequest
from aerie.server.routes import generates, works


class Admission:
    """Lets a request that works in when there is room for it, and refuses it otherwise; everything else passes.

    Weighs the object that `JsonBody` left in `scope["state"]`. `Shed`, before that, refuses what no body could change.
    """

    def __init__(self, app: ASGIApp, occupancy: Occupancy, limits: LimitSettings) -> None:
        self.app = app
        self.occupancy = occupancy
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward or refuse one request."""
        if scope["type"] != "http" or not works(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        state = scope["state"]
        weight = LEAST
        if generates(scope["method"], scope["path"]):
            weight = weigh(state["body"], state["body_bytes"], self.occupancy.capacity.longest, self.limits)
        try:
            self._check_fan_out(weight, state["body"])
            if (seat := state.get("key_seat")) is not None:
                seat.widen(weight.sequences)
        except ApiError as refusal:
            await answer(refusal, scope, receive, send)
            return
        try:
            with self.occupancy.holding(weight):
                await self.app(scope, receive, send)
        except Overloaded as error:
            await answer(error, scope, receive, send)

    def _check_fan_out(self, weight: Weight, body: dict[str, Any]) -> None:
        """No request takes more places than the engine has: those of the queue are for the others."""
        most = self.occupancy.capacity.sequences
        if 0 < most < weight.sequences:  # 0 while the engine loads
            name = "prompt" if isinstance(body.get("prompt"), list) else "n"
            asked = f"the request asks for {weight.sequences} answers (prompts × n)"
            raise BadRequest(name, f"{asked}, and this server works on {most} at a time; send several requests.")
