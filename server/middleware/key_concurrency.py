# SPDX-License-Identifier: Apache-2.0
"""How many requests one key may have at a time."""

from collections import Counter
from contextlib import ExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.errors import answer
from aerie.server.refusals import TooManyOfKey


class KeyConcurrency:
    """Answers 429 while a key has `most` requests in flight. Inside `Authenticate`, which names the key."""

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
        if self.running[name] >= self.most:
            await answer(TooManyOfKey(), scope, receive, send)
            return
        self.running[name] += 1
        with ExitStack() as seat:
            seat.callback(self._leave, name)

            async def leaving(message: Message) -> None:
                # Given back before the client can know: one that keeps exactly `most` requests in flight asks the next
                # while this one's tasks still end.
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    seat.close()
                await send(message)

            await self.app(scope, receive, leaving)

    def _leave(self, name: str) -> None:
        self.running[name] -= 1
        if not self.running[name]:
            del self.running[name]
