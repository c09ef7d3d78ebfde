# SPDX-License-Identifier: Apache-2.0
"""An engine in a process of its own: what it took of memory, devices and process groups goes when it ends.

The engine's core runs inside that process rather than beside it. A core of its own starts on the first prompt while
others are still on their way, so batches, and with them the last bits of every sum, would differ from run to run.
"""

import multiprocessing
import os
import pickle
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from aerie.trainer.draft.lifeline import die_with

Request = TypeVar("Request")
Response = TypeVar("Response")
Open = Callable[..., AbstractContextManager[Callable[[Request], Response]]]
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Pinning the engine's threads to cores would fight with whatever else the machine runs.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
DEFAULTS = {
    # Its messages would stand between ours: about loading, compiling, every request.
    "VLLM_LOGGING_LEVEL": "WARNING",
}
PATIENCE_S = 60.0
"""For an engine to end by itself."""


class Counter(Protocol):
    """A number that two processes see."""

    value: int


def new_counter(value: int = 0) -> Counter:
    """A counter to hand to a Child, which raises it."""
    counter: Counter = multiprocessing.get_context("spawn").Value("q", value)
    return counter


class ChildError(RuntimeError):
    """The process failed in a way that it could not report as an exception of its own."""


class Child(Generic[Request, Response]):
    """Calls `opened(request)` in another process, where `opened` is what `open_(*arguments)` yields there.

    Ends with the block, and by itself when this process dies. Exceptions of the call are raised here.
    """

    def __init__(self, open_: Open[Request, Response], *arguments: object) -> None:
        # Neither fork, which a process with threads must not, nor forkserver, which keeps an old environment.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, os.getpid(), open_, arguments), name="aerie-engine"
        )
        self._process.start()
        theirs.close()
        # Also at the interpreter's end, which waits for children.
        self._finish = weakref.finalize(self, _end, self._connection, self._process)

    def ask(self, request: Request) -> Response:
        """What the other process answers; waits for it."""
        try:
            # A process that failed while it opened has closed its end, but its reason waits to be read.
            with suppress(BrokenPipeError):
                self._connection.send(request)
            error, response = self._connection.recv()
        except (EOFError, OSError) as broken:
            self._process.join(PATIENCE_S)
            raise ChildError(f"the engine's process ended with code {self._process.exitcode}; see its log") from broken
        if error is not None:
            raise error
        answer: Response = response
        return answer

    def close(self) -> None:
        """End the process once it is idle."""
        self._finish()

    def stop(self) -> None:
        """End the process in the middle of what it does; who waits in `ask` gets a ChildError."""
        self._process.terminate()
        self._process.join(PATIENCE_S)
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _end(connection: Connection, process: BaseProcess) -> None:
    connection.close()
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        process.join()


def _serve(connection: Connection, parent: int, open_: Open[Any, Any], arguments: tuple[object, ...]) -> None:
    # An answer may take an hour; an orphan would hold the memory that the next run needs.
    die_with(parent)
    os.environ.update(SETTINGS)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        with open_(*arguments) as call:
            while True:
                # EOFError when the other end is closed, by its owner or by its owner's death.
                request = connection.recv()
                error, response = None, None
                try:
                    response = call(request)
                except Exception as raised:
                    error = _portable(raised)
                connection.send((error, response))
    except (EOFError, OSError):
        return
    except Exception as error:
        connection.send((_portable(error), None))
        raise


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own bytes
    except Exception:
        return ChildError(f"{type(error).__name__}: {error}")
    return error
