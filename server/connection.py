# SPDX-License-Identifier: Apache-2.0
"""One HTTP connection, with the limits that uvicorn lacks over httptools. Read against uvicorn 0.54, httptools 0.9.

httptools keeps a header of any length in memory and waits for its end for ever; uvicorn's own limit
(`h11_max_incomplete_event_size`) is h11's alone, and its keep-alive timeout ends with the first byte of a request. An
answer that its client does not read waits for ever, and the engine's request with it. llhttp leaves HTTP/1.1 at the end
of a head with `Upgrade`, so that the body is parsed as the next request; uvicorn adds trailers to the headers.
"""

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from aerie.server.errors import ApiError
from aerie.server.refusals import HeadersTooLarge, MalformedRequest
from aerie.server.request_head import check_head, without_upgrade
from aerie.server.transports import LingeringTransport, WriteWatch

MAX_HEADERS = 128
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may send before its request is looked at, and how long it may leave an answer unread."""

    connections: int
    header_bytes: int
    header_seconds: float
    write_seconds: float


class Part(Enum):
    """Where in a request the parser is."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's protocol that closes connections beyond a number, with slow, long or many headers, or unread.

    `limits` is set by the subclass that `limited` makes: uvicorn takes a class.
    """

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*arguments, **named)
        self.url = b""
        self._part = Part.BETWEEN
        self._upgrade_offered = False
        self._refused = False
        self._unproductive_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Take the connection, or close it."""
        self._socket = LingeringTransport(transport)
        self._watch = WriteWatch(transport, self.limits.write_seconds)
        super().connection_made(self._socket)
        if len(self.connections) > self.limits.connections and not self._make_room():
            self.logger.warning("closed a connection: %d are open", self.limits.connections)
            self._socket.close_now()
            return
        # Writing is paused as soon as a byte waits: the watch then sees every answer that is not read, and the
        # application sends nothing meanwhile, so that fewer bytes are progress.
        transport.set_write_buffer_limits(high=0)
        # Like one between requests: clients connect ahead, or stall between that and their first byte.
        self._wait_for_request()

    def pause_writing(self) -> None:
        """A byte waits to be sent; the application's `send` does too."""
        super().pause_writing()
        self._watch.begin()

    def resume_writing(self) -> None:
        """All are sent."""
        self._watch.end()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived. What brings neither a whole header block nor a byte of the body is kept by the parser."""
        if self._refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._unproductive_bytes += len(data)
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError as error:
            log.debug("refused a request: %r", error.__context__ or error)
            self._refuse(error.__context__ if isinstance(error.__context__, ApiError) else MalformedRequest())
            return
        if self._unproductive_bytes > self.limits.header_bytes + len(data):
            self._refuse(HeadersTooLarge())
        elif self._idle_until is None and (self._part is Part.HEAD or not self._answering):
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_waiting()
        self._watch.end()
        self._socket.forget()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: end what is idle now, and the rest after its answer."""
        self._socket.hurry()
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """No request came in time; one that waits to be read did."""
        if not self.transport.is_closing() and not self._socket.unread:
            self._end("no request came")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._part = Part.HEAD
        self._upgrade_offered = False
        self._unproductive_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request line.

        Raises:
            HeadersTooLarge: it is too long.
        """
        super().on_url(url)
        if len(self.url) > self.limits.header_bytes:
            raise HeadersTooLarge

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header; trailers are ignored.

        Raises:
            HeadersTooLarge: there are too many, or they are too long.
        """
        if self._part is not Part.HEAD:
            return
        super().on_header(name, value)
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > MAX_HEADERS or size > self.limits.header_bytes:
            raise HeadersTooLarge

    def on_headers_complete(self) -> None:
        """The headers are there.

        Raises:
            MalformedRequest, NotImplementedHere, UnsupportedVersion: see `check_head`.
        """
        check_head(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
        self._upgrade_offered = self.parser.should_upgrade()
        if self._upgrade_offered:
            return  # `_parse` goes on
        super().on_headers_complete()
        self._part = Part.BODY
        self._unproductive_bytes = 0
        self._stop_waiting()

    def on_message_complete(self) -> None:
        """A request is whole. The rest of one refused before it has ended uvicorn's wait for another: begin it anew."""
        if self._upgrade_offered:
            return
        self._part = Part.BETWEEN
        super().on_message_complete()
        if not self._answering and not self.transport.is_closing():
            self._stop_waiting()
            self._wait_for_request()

    def on_body(self, body: bytes) -> None:
        """A part of the body; its length is the application's business."""
        self._unproductive_bytes = 0
        super().on_body(body)

    @property
    def _answering(self) -> bool:
        """Whether a request waits for the end of its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _idle_until(self) -> float | None:
        """When it is closed, on the loop's clock, unless a request begins; `None` during one."""
        timer = self.timeout_keep_alive_task
        return None if timer is None or self.transport.is_closing() else timer.when()

    @property
    def _expendable(self) -> tuple[int, float] | None:
        """The less, the sooner it makes room: one that lingers, then an idle one, then one within its headers."""
        if self._socket.spent:
            return 0, 0.0
        if self._idle_until is not None:
            return 1, self._idle_until
        if self._deadline is None or self.transport.is_closing():
            return None
        return 2, self._deadline.when()

    def _make_room(self) -> bool:
        """Close another connection for this one: whoever waits for an answer is worth more than a pool's spare ones."""
        others = [other for other in self.connections if isinstance(other, LimitedConnection)]
        ranked = [(rank, other) for other in others if (rank := other._expendable) is not None]
        for (kind, _), other in sorted(ranked, key=lambda pair: pair[0]):
            if kind == 0 or not other._socket.unread:
                other._end("it made room")
                return True
        return False

    def _parse(self, data: memoryview) -> None:
        """Feed the parser; where it stops for an upgrade, a new one reads the same head without the offer of it."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                head = without_upgrade(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
                data = data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                self.parser.feed_data(head)
            else:
                return

    def _refuse(self, error: ApiError) -> None:
        """Read no more, and answer for what was being read, unless it has an answer. Those before it get theirs."""
        self._refused = True
        if self._answering and (self._part is not Part.BODY or self.cycle.response_started or self.pipeline):
            self.cycle.keep_alive = False
            return
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._write(error)
        elif self._part is not Part.BODY:
            self._write(error)
        self.transport.close()

    def _write(self, error: ApiError) -> None:
        response = error.response({"path": self.url.partition(b"?")[0].decode("latin-1")})
        headers = [*self.server_state.default_headers, *response.raw_headers]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + bytes(response.body))

    def _end(self, reason: str) -> None:
        log.debug("closed %s: %s", self.client, reason)
        self._socket.close_now()

    def _wait_for_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _expect_headers(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.header_seconds, self._end, "its headers did not end")

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def limited(limits: ConnectionLimits) -> type[LimitedConnection]:
    """The protocol class with these limits."""
    return type("Connection", (LimitedConnection,), {"limits": limits})
