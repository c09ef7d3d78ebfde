# SPDX-License-Identifier: Apache-2.0
"""How far a long stage is: a live bar on a terminal, else a line a minute, so that a log tells it as well."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 60.0
FRAME_SECONDS = 0.5


class Bar:
    """Counts one stage on standard error; a context manager.

    Args:
        stage: what is done, such as "answers".
        total: how much of it there is, in `unit`s.
        unit: plural, such as "prompts".
        done: what an earlier run had done.
        count: asked for what is done, where another process counts it; else `update` and `advance` say so.
        hidden: say nothing, for all processes of a group but one.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        count: Callable[[], int] | None = None,
        hidden: bool = False,
        stream: TextIO | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._first = self._done = done
        self._count, self._hidden, self._text = count, hidden, ""
        self._stream = stream or sys.stderr
        self._seconds = FRAME_SECONDS if self._stream.isatty() else line_seconds
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="aerie-progress", daemon=True)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if not self._hidden:
            if self._stream.isatty():
                self._open_live()
            else:
                self._write(f"{self._stage}: {self._done:,} of {self._total:,} {self._unit}")
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._hidden:
            return
        self._ended.set()
        self._ticker.join()
        self._show()
        if self._live is not None:
            self._live.stop()

    def begin_at(self, done: int) -> None:
        """An earlier run had done so much; the rate is of what follows."""
        self._first = self._done = done
        self._began = time.monotonic()

    def update(self, done: int, text: str = "", stage: str | None = None) -> None:
        """So much is done of all; `text` and `stage` are shown beside it."""
        self._done, self._text, self._stage = done, text, stage or self._stage

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        self._done += count

    def say(self, line: str) -> None:
        """Write a line of its own."""
        if self._live is not None:
            self._live.print(line, markup=False, highlight=False)
        elif not self._hidden:
            self._write(line)

    def line(self, seconds: float) -> str:
        """Stage, done of all, rate and time left, `seconds` after the start."""
        share = self._done / self._total if self._total else 1.0
        words = f"{self._stage}: {self._done:,} of {self._total:,} {self._unit} ({share:.0%})"
        rate = (self._done - self._first) / seconds if seconds > 0 else 0.0
        if rate > 0:
            words += f", {rate:,.3g} {self._unit}/s, {_duration((self._total - self._done) / rate)} left"
        else:
            words += f", {_duration(seconds)} so far"
        return f"{words}, {self._text}" if self._text else words

    def _tick(self) -> None:
        while not self._ended.wait(self._seconds):
            self._show()

    def _show(self) -> None:
        if self._count is not None:
            self._done = self._count()
        if self._live is None:
            self._write(self.line(time.monotonic() - self._began))
        elif self._task is not None:
            self._live.update(self._task, completed=self._done, description=self._stage, text=self._text)

    def _open_live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._live = Progress(
            *columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=Console(file=self._stream)
        )
        self._task = self._live.add_task(self._stage, total=self._total, completed=self._done, text="")
        self._live.start()

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
