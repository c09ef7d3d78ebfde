# SPDX-License-Identifier: Apache-2.0
"""How the engine's streams end: as their API documents it, whatever went wrong inside.

vLLM sends an event a message. Its chats and completions say `[DONE]` after an error, its Responses break off at an
error and call an answer that was cut complete, and what is refused before the first token has status 200.
"""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.engine_errors import EngineError, engine_error
from aerie.server.errors import ApiError, answer, note
from aerie.server.exchange import is_event_stream
from aerie.server.middleware.scrub import clean
from aerie.server.responses import RESPONSES, ResponsesStream

ERRORS = (b'data: {"error"', b"event: error\n")
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}
log = logging.getLogger(__name__)


class EventStream:
    """Passes streams on, with errors in the documented form and nothing after them; other answers as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stream = _Stream(scope, receive, send)
        try:
            await self.app(scope, receive, stream.forward)
        except Exception:
            if not stream.open:
                raise
            log.exception("request %s: the engine's stream failed", scope["state"].get("request_id"))
            await stream.fail(ApiError())


class _Stream:
    """One answer on its way to the client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.open = False
        """Whether it is a stream that has not ended."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._head: Message | None = None
        self._failed = False
        self._responses = ResponsesStream() if scope["path"] == RESPONSES else None

    async def forward(self, message: Message) -> None:
        """Pass a message of the application on."""
        if self._failed:
            return
        if message["type"] == "http.response.start" and message["status"] == 200 and is_event_stream(message):
            self._head, self.open = message, True
            return
        if not self.open:
            await self._send(message)
            return
        event = message.get("body", b"")
        if event.startswith(ERRORS):
            await self.fail(self._error(event))
            return
        if self._responses is not None:
            event = self._responses.rewritten(event)
            self._scope["state"]["sequence_number"] = self._responses.next_number
        self.open = message.get("more_body", False)
        if event or not self.open:
            await self._begin()
            await self._send({**message, "body": event})

    async def fail(self, error: ApiError) -> None:
        """End it with an error: an answer of its own before the first event, an event after it."""
        self.open, self._failed = False, True
        if self._head is not None:
            await answer(error, self._scope, self._receive, self._send)
            return
        note(self._scope, error)
        await self._send({**END, "body": error.event(self._scope)})

    async def _begin(self) -> None:
        if self._head is not None:
            await self._send(self._head)
            self._head = None

    def _error(self, event: bytes) -> ApiError:
        """The error that an event of vLLM's tells."""
        body = clean(event.partition(b"data: ")[2])
        error = engine_error(body, self._scope) or EngineError(500)
        if error.status >= 500:
            request_id = self._scope["state"].get("request_id")
            log.error("request %s: the engine's stream failed: %s", request_id, body[:500])
        return error
