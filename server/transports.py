# SPDX-License-Identifier: Apache-2.0
"""How a connection ends: after a time if its answer is not read, else so that its client loses no part of it."""

import asyncio
import select
from typing import Any

LINGER_SECONDS = 5.0
"""For which a closed connection goes on reading, so that its client reads the answer before it learns of the end."""


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


class LingeringTransport(asyncio.Transport):
    """A transport whose `close` sends what is left and an end, and reads on until the client has closed too.

    A socket that is closed with bytes unread, or that is sent more afterwards, answers with a reset, which discards
    what the client has not read of its answer (RFC 9112, 9.6).
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._lingers: asyncio.TimerHandle | None = None
        self._hurried = False

    @property
    def spent(self) -> bool:
        """Whether it lingers, with nothing left to send."""
        if self._lingers is None or self._transport.is_closing():
            return False
        return not self._transport.get_write_buffer_size()

    @property
    def unread(self) -> bool:
        """Whether bytes have come that the loop has not read yet: a request, which closing would lose."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Send no more; close when the client has closed or after `LINGER_SECONDS`."""
        if self.is_closing():
            return
        if self._hurried or not self._transport.can_write_eof():
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # the client is gone
            self._transport.abort()
            return
        self._transport.resume_reading()
        self._lingers = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)

    def close_now(self) -> None:
        """Close once all is sent, whatever the client still sends."""
        self.forget()
        self._transport.close()

    def hurry(self) -> None:
        """Linger no more, now or later."""
        self._hurried = True
        if self._lingers is not None:
            self.close_now()

    def forget(self) -> None:
        """Stop the clock."""
        if self._lingers is not None:
            self._lingers.cancel()

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._lingers is not None or self._transport.is_closing()

    def write(self, data: Any) -> None:  # noqa: ANN401 - as asyncio's
        """Send bytes, unless it is closing."""
        if not self.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """Read no more for now; while it lingers, it reads."""
        if not self.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as asyncio's
        """What is known of the socket."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Bytes that wait to be sent."""
        return self._transport.get_write_buffer_size()
