# SPDX-License-Identifier: Apache-2.0
"""The live bar of `aerie quantize`: layers done, error of the last one, peak memory, time left."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from aerie.quant.memory import peak_bytes


class Bar:
    """`quant.convert.Progress` on standard error; a context manager."""

    def __init__(self, iterations: int = 0) -> None:
        columns = (
            TextColumn("quantising"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task: TaskID | None = None
        self._iterations, self._tuned, self._done = iterations, 0, 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def layer(self, done: int, total: int, error: float | None) -> None:
        """So many parts are done."""
        said = "" if error is None else f"output error {error:.4f}, "
        said += f"peak {peak_bytes() / 2**30:.1f} GiB"
        self._done, self._tuned = done, 0
        if self._task is None:
            self._task = self._bar.add_task("", total=total, completed=done, said=said)
        self._bar.update(self._task, completed=done, total=total, said=said)

    def tuning(self, loss: float) -> None:
        """An iteration within a layer is done."""
        self._tuned += 1
        if self._task is not None and self._iterations:
            # A layer's tuning is nearly all of its time.
            self._bar.update(self._task, completed=self._done + 0.95 * self._tuned / self._iterations)
