# SPDX-License-Identifier: Apache-2.0
"""One HTTP connection, with the limits that uvicorn lacks over httptools. Read against uvicorn 0.54, httptools 0.9.

httptools keeps a header of any length in memory and waits for its end for ever; uvicorn's own limit
(`h11_max_incomplete_event_size`) is h11's alone, and its keep-alive timeout ends with the first byte of a request. An
answer that its client does not read waits for ever, and the engine's request with it.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS = 128


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may send before its request is looked at, and how long it may leave an answer unread."""

    connections: int
    header_bytes: int
    header_seconds: float
    write_seconds: float


class WriteWatch:
    """Aborts a connection of which no waiting byte could be sent for a time.

    A slow client is one thing: each look that finds fewer bytes waiting begins the time anew.
    """

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._left = 0
        self._next: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Bytes wait."""
        self._left = self._transport.get_write_buffer_size()
        self._next = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def end(self) -> None:
        """None wait, or the connection is gone."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self) -> None:
        if self._transport.get_write_buffer_size() < self._left:
            self.begin()
        else:
            self._transport.abort()


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's protocol that closes connections beyond a number, with slow, long or many headers, or unread.

    `limits` is set by the subclass that `limited` makes: uvicorn takes a class.
    """

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*arguments, **named)
        self._in_headers = True
        self._unproductive_bytes = 0
        self._too_large = False
        self._deadline: asyncio.TimerHandle | None = None
        self._watch: WriteWatch | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Take the connection, or close it."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections and not self._end_longest_idle():
            self.logger.warning("closed a connection: %d are open", self.limits.connections)
            transport.close()
            return
        # Writing is paused as soon as a byte waits: the watch then sees every answer that is not read, and the
        # application sends nothing meanwhile, so that fewer bytes are progress.
        transport.set_write_buffer_limits(high=0)
        self._watch = WriteWatch(transport, self.limits.write_seconds)
        # Like one between requests: clients connect ahead, or stall between that and their first byte.
        self._wait_for_request()

    def pause_writing(self) -> None:
        """A byte waits to be sent; the application's `send` does too."""
        super().pause_writing()
        if self._watch is not None:
            self._watch.begin()

    def resume_writing(self) -> None:
        """All are sent."""
        if self._watch is not None:
            self._watch.end()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived. What brings neither a whole header block nor a byte of the body is kept by the parser."""
        if self._too_large:
            return  # refused, and about to be closed
        self._unproductive_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._idle_until is None:
            self._expect_headers()
        if self._unproductive_bytes > self.limits.header_bytes + len(data) and not self.transport.is_closing():
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_waiting()
        if self._watch is not None:
            self._watch.end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._in_headers = True
        self._unproductive_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        super().on_url(url)
        if len(self.url) > self.limits.header_bytes:
            self._refuse()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        super().on_header(name, value)
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > MAX_HEADERS or size > self.limits.header_bytes:
            self._refuse()

    def on_headers_complete(self) -> None:
        """The headers are there."""
        self._in_headers = False
        self._unproductive_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """An answer is whole. Between requests a single byte ends uvicorn's wait, so that the headers' must begin."""
        super().on_response_complete()
        if self._idle_until is not None:
            self._in_headers = True

    def on_message_complete(self) -> None:
        """A request is whole. The rest of one refused before it has ended uvicorn's wait for another: begin it anew."""
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._stop_waiting()
            self._wait_for_request()

    def on_body(self, body: bytes) -> None:
        """A part of the body; its length is the application's business."""
        self._unproductive_bytes = 0
        super().on_body(body)

    @property
    def _idle_until(self) -> float | None:
        """When it is closed, on the loop's clock, unless a request begins; `None` during one."""
        timer = self.timeout_keep_alive_task
        return None if timer is None or self.transport.is_closing() else timer.when()

    def _end_longest_idle(self) -> bool:
        """Make room for this connection: whoever waits for an answer is worth more than a pool's spare ones."""
        idle = [(one._idle_until, one) for one in self.connections if isinstance(one, LimitedConnection)]
        waiting = [(until, one) for until, one in idle if until is not None]
        if not waiting:
            return False
        _, longest = min(waiting, key=lambda pair: pair[0])
        longest.transport.close()
        return True

    def _refuse(self) -> None:
        self._too_large = True
        if self._in_headers:
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is no HTTP, unless it has been refused."""
        if not self._too_large:
            super().send_400_response(msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: a client could fill the log with it."""

    def _wait_for_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _expect_headers(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def limited(limits: ConnectionLimits) -> type[LimitedConnection]:
    """The protocol class with these limits."""
    return type("Connection", (LimitedConnection,), {"limits": limits})
