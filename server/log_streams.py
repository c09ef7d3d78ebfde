# SPDX-License-Identifier: Apache-2.0
"""Standard streams that lose what they cannot write: a full disk takes the log, and must not take the server.

`multiprocessing` flushes both streams before it starts a process (CPython 3.11, `util._flush_std_streams`), and a flush
that fails keeps the engine from starting; a `print` in a library fails the same way later, in the middle of a request.
"""

import sys
from typing import Any, TextIO, cast


class LossyStream:
    """A text stream whose writing never fails. It tries each time anew, so that it goes on once there is room."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write or lose `text`; how long it is, either way."""
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Write what waits, or leave it waiting."""
        try:
            self._stream.flush()
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the stream's own
        """The rest is the stream's: `fileno`, `isatty`, `encoding`."""
        return getattr(self._stream, name)


def keep_writable() -> None:
    """Let nothing in this process fail for the sake of its log. Idempotent, also around streams that are wrapped."""
    if not isinstance(sys.stdout, LossyStream):
        sys.stdout = cast(TextIO, LossyStream(sys.stdout))
    if not isinstance(sys.stderr, LossyStream):
        sys.stderr = cast(TextIO, LossyStream(sys.stderr))
