# SPDX-License-Identifier: Apache-2.0
"""A request in flight, which a deadline, the end of the engine or of the server can end early.

Ending it early is told to the application below as what it knows already: the client's going away. vLLM's handlers
then abort the engine's request, which a cancelled task alone does not achieve: `with_cancellation` leaves its handler
running.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.errors import ApiError, note

ABORT_SECONDS = 1.0
"""Time for the application to notice that its client is gone, before its task is cancelled."""
FAREWELL_SECONDS = 5.0
"""Time for a client that does not read to take the last words; its connection is closed then."""
POLL_SECONDS = 0.05
CURRENT: ContextVar["Exchange | None"] = ContextVar("aerie_exchange", default=None)
log = logging.getLogger(__name__)


class Exchange:
    """One request and its answer.

    The answer's head is held back until its first bytes: what fails before has its own status code, streamed or not.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, lost: Callable[[], ApiError | None]) -> None:
        self.scope = scope
        self.waits: list[Callable[[], bool]] = []
        """One for each request in the engine: whether it still waits for its first token."""
        self.cut: set[int] = set()
        """Numbers of the choices that ended at the limit of tokens."""
        self._receive = receive
        self._send = send
        self._lost = lost
        self._end: asyncio.Future[ApiError] = asyncio.get_running_loop().create_future()
        self._head: Message | None = None
        self._begun = False
        self._complete = False

    @property
    def waiting(self) -> bool:
        """Whether no token came yet."""
        return not self._begun and (not self.waits or any(wait() for wait in self.waits))

    def interrupt(self, error: ApiError) -> None:
        """End it with an error, unless it has ended. Returns at once."""
        if not self._end.done():
            self._end.set_result(error)

    async def run(self, app: ASGIApp) -> None:
        """Have `app` answer, until it has or until it is interrupted."""
        CURRENT.set(self)
        task = asyncio.ensure_future(app(self.scope, self._receive_or_end, self._forward))
        either: set[asyncio.Future[Any]] = {task, self._end}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._end.done():
                await self._tell(self._end.result())
                await asyncio.wait({task}, timeout=ABORT_SECONDS)
            elif self._complete and (task.cancelled() or task.exception() is not None):
                # The client has its answer. uvicorn would close the connection, on which it may have asked again.
                log.error("an application failed after its answer", exc_info=_failure(task))
            else:
                task.result()
        finally:
            await _ended(task)

    async def _receive_or_end(self) -> Message:
        """The next message of the client, or its going away once the exchange is interrupted."""
        if self._end.done():
            return {"type": "http.disconnect"}
        message = asyncio.ensure_future(self._receive())
        either: set[asyncio.Future[Any]] = {message, self._end}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return message.result() if message.done() else {"type": "http.disconnect"}
        finally:
            message.cancel()

    async def _forward(self, message: Message) -> None:
        """Pass a part of the answer on, except what the death of the engine made of it."""
        if self._end.done():
            return
        kind = message["type"]
        streamed = self._head is not None and is_event_stream(self._head)
        failed = kind == "http.response.start" and message["status"] >= 500
        if (streamed or failed) and (error := self._lost()) is not None:
            self.interrupt(error)
            return
        if kind == "http.response.start":
            self._head = message
            return
        if not self._begun and self._head is not None:
            self._begun = True
            await self._send(self._head)
        self._complete = not message.get("more_body", False)
        await self._send(message)

    async def _tell(self, error: ApiError) -> None:
        """The last words: an answer of its own, or an event when a stream has begun; other bodies are cut off."""
        note(self.scope, error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                if not self._begun:
                    await error.response(self.scope)(self.scope, self._receive, self._send)
                elif self._head is not None and is_event_stream(self._head):
                    await self._send(
                        {"type": "http.response.body", "body": error.event(self.scope), "more_body": False}
                    )


class Exchanges:
    """Every exchange in flight."""

    def __init__(self) -> None:
        self._open: set[Exchange] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextlib.contextmanager
    def holding(self, exchange: Exchange) -> Iterator[None]:
        """Count the exchange as open."""
        self._open.add(exchange)
        try:
            yield
        finally:
            self._open.discard(exchange)

    def interrupt(self, error: ApiError) -> int:
        """End all of them with an error; how many there were."""
        for exchange in self._open:
            exchange.interrupt(error)
        return len(self._open)

    async def drained(self, seconds: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Wait until none is open, at most `seconds` and not once `hurry()` holds; whether none is."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while self._open and clock() < deadline and not hurry():
            await asyncio.sleep(POLL_SECONDS)
        return not self._open


def is_event_stream(head: Message) -> bool:
    """Whether the answer that begins so is a stream of events."""
    return any(name.lower() == b"content-type" and b"text/event-stream" in value for name, value in head["headers"])


def _failure(task: "asyncio.Future[None]") -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def _ended(task: "asyncio.Future[None]") -> None:
    """Cancel what still runs, and leave no exception unread."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=ABORT_SECONDS)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        log.debug("a request ended with %r", error)
