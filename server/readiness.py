# SPDX-License-Identifier: Apache-2.0
"""What the server is doing, as `/livez` and `/readyz` tell it."""

import time
from collections.abc import Callable
from enum import StrEnum

from starlette.types import ASGIApp

from aerie.server.errors import NotReady


class Stage(StrEnum):
    """The stages of a process's life, in order; `FAILED` can follow any of them."""

    STARTING = "starting"
    IMPORTING = "importing vLLM"
    CONFIGURING = "reading the checkpoints"
    LOADING = "loading the engine"
    OPENING = "opening the API"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Readiness:
    """The current stage and, once it is ready, the engine's application. One writer at a time, any reader."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._entered = self._began
        self._errored: Callable[[], bool] = lambda: False
        self._application: ASGIApp | None = None
        self.stage = Stage.STARTING

    def advance(self, stage: Stage) -> None:
        """Enter a stage."""
        self.stage = stage
        self._entered = self._clock()

    def open(self, application: ASGIApp, errored: Callable[[], bool]) -> None:
        """Become ready: requests go to `application` until the server stops or `errored()` holds."""
        self._application = application
        self._errored = errored
        self.advance(Stage.READY)

    @property
    def seconds(self) -> float:
        """Seconds from the start of the process's work to the current stage."""
        return self._entered - self._began

    @property
    def ready(self) -> bool:
        """Whether a request would be answered."""
        return self.stage is Stage.READY and not self._errored()

    def application(self) -> ASGIApp:
        """The engine's application.

        Raises:
            NotReady: there is none yet, or it is going away.
        """
        if self._application is None or not self.ready:
            raise NotReady(f"The server is not ready: {self._status()} ({self.stage}).")
        return self._application

    def report(self) -> dict[str, object]:
        """The body of `/readyz`."""
        return {
            "status": self._status(),
            "stage": str(self.stage),
            "stage_seconds": round(self._clock() - self._entered, 1),
        }

    def _status(self) -> str:
        if self.stage in (Stage.READY, Stage.STOPPING, Stage.FAILED):
            return str(self.stage if self.stage is not Stage.READY or self.ready else Stage.FAILED)
        return "loading"
