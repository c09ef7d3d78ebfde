# SPDX-License-Identifier: Apache-2.0
"""What the engine's full answers say of their end, where vLLM's handlers say something else than in a stream."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerie.server.anthropic_errors import ROUTE as MESSAGES
from aerie.server.exchange import CURRENT
from aerie.server.middleware.scrub import send_whole
from aerie.server.responses import RESPONSES, mark_incomplete

CHAT = "/v1/chat/completions"


class FullAnswer:
    """Corrects answers of status 200 in JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request."""
        correct = CORRECTIONS.get(scope["path"]) if scope["type"] == "http" else None
        if correct is None:
            await self.app(scope, receive, send)
            return
        head: Message | None = None
        body = bytearray()

        async def corrected(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start" and _is_json(message):
                head = message
            elif head is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await send_whole(head, correct(bytes(body)), send)

        await self.app(scope, receive, corrected)


def _cut_calls(body: bytes) -> bytes:
    """`finish_reason` of a chat that `max_tokens` cut: vLLM says `tool_calls` as soon as there is one."""
    exchange = CURRENT.get()
    if exchange is None or not exchange.cut or b'"tool_calls"' not in body:
        return body
    answer: dict[str, Any] = json.loads(body)
    for choice in answer["choices"]:
        if choice["index"] in exchange.cut:
            choice["finish_reason"] = "length"
    return _dump(answer)


def _cut_message(body: bytes) -> bytes:
    """`stop_reason` of a message that `max_tokens` cut after a call of its own."""
    exchange = CURRENT.get()
    if exchange is None or not exchange.cut or b'"tool_use"' not in body:
        return body
    return _dump(json.loads(body) | {"stop_reason": "max_tokens"})


def _cut_response(body: bytes) -> bytes:
    """`status` of the item that `max_output_tokens` cut."""
    if b'"incomplete"' not in body:
        return body
    answer: dict[str, Any] = json.loads(body)
    return _dump(answer) if mark_incomplete(answer) else body


CORRECTIONS: Mapping[str, Callable[[bytes], bytes]] = {
    CHAT: _cut_calls,
    MESSAGES: _cut_message,
    RESPONSES: _cut_response,
}


def _dump(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def _is_json(head: Message) -> bool:
    kind: bytes = dict(head["headers"]).get(b"content-type", b"")
    return head["status"] == 200 and kind.startswith(b"application/json")
