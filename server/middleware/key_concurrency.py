# SPDX-License-Identifier: Apache-2.0
"""How many answers one key may have made at a time."""

from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.errors import answer
from aerie.server.refusals import BadRequest, TooManyOfKey


class KeySeat:
    """The places that one request of a key has taken: one from its start, one for each answer from its body on."""

    def __init__(self, running: Counter[str], name: str, most: int) -> None:
        """Take the first place.

        Raises:
            TooManyOfKey: there is none.
        """
        self._running = running
        self._name = name
        self._most = most
        self._places = 0
        self.widen(1)

    def widen(self, places: int) -> None:
        """Have this many places.

        Raises:
            BadRequest: more than a key may ever have.
            TooManyOfKey: more than are left.
        """
        if places > self._most:
            asked = f"the request asks for {places} answers (prompts × n)"
            raise BadRequest("n", f"{asked}, and a key may have {self._most} at a time; send several requests.")
        if self._running[self._name] + places - self._places > self._most:
            raise TooManyOfKey
        self._running[self._name] += places - self._places
        self._places = places

    def leave(self) -> None:
        """Give all places back; once is enough."""
        self._running[self._name] -= self._places
        self._places = 0
        if not self._running[self._name]:
            del self._running[self._name]


class KeyConcurrency:
    """Answers 429 while a key has `most` answers in the making. Inside `Authenticate`, which names the key.

    Leaves the request's seat in `scope["state"]["key_seat"]`: how many answers it asks for stands in its body.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most
        self.running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count one request of a key from its start to its end."""
        name = scope.get("state", {}).get("key")
        if name is None:
            await self.app(scope, receive, send)
            return
        try:
            seat = KeySeat(self.running, name, self.most)
        except TooManyOfKey as refusal:
            await answer(refusal, scope, receive, send)
            return
        scope["state"]["key_seat"] = seat

        async def leaving(message: Message) -> None:
            # Given back before the client can know: one that keeps exactly `most` requests in flight asks the next
            # while this one's tasks still end.
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                seat.leave()
            await send(message)

        try:
            await self.app(scope, receive, leaving)
        finally:
            seat.leave()
