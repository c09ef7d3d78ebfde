# SPDX-License-Identifier: Apache-2.0
"""How far `aerie quantize` is: layers done, error of the last one, peak memory, time left."""

from types import TracebackType
from typing import Self

from aerie import progress
from aerie.quant.memory import peak_bytes


class Bar:
    """`quant.convert.Progress` on standard error; a context manager."""

    def __init__(self, iterations: int = 0) -> None:
        self._bar: progress.Bar | None = None
        self._iterations, self._tuned, self._done = iterations, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def layer(self, done: int, total: int, error: float | None) -> None:
        """So many parts are done."""
        text = "" if error is None else f"output error {error:.4f}, "
        text += f"peak {peak_bytes() / 2**30:.1f} GiB"
        self._done, self._tuned = done, 0
        if self._bar is None:
            self._bar = progress.Bar("quantising", total, "parts", done=done).__enter__()
        self._bar.update(done, text)

    def tuning(self, loss: float) -> None:
        """An iteration within a layer is done."""
        self._tuned += 1
        if self._bar is not None and self._iterations:
            # A layer's tuning is nearly all of its time.
            self._bar.update(self._done, f"iteration {self._tuned} of {self._iterations}, loss {loss:.3g}")
