# SPDX-License-Identifier: Apache-2.0
"""What the server is doing, as `/livez` and `/readyz` tell it."""

import math
import time
from collections.abc import Callable
from enum import StrEnum

from starlette.types import ASGIApp

from aerie.server.errors import EngineDead, EngineRestarting, NotReady, ShuttingDown, Unavailable

LONGEST_RETRY_S = 300


class Stage(StrEnum):
    """The stages of a process's life, in order; the last two can follow any."""

    STARTING = "starting"
    IMPORTING = "importing vLLM"
    CONFIGURING = "reading the checkpoints"
    LOADING = "loading the engine"
    OPENING = "opening the API"
    WARMING = "warming up"
    READY = "ready"
    RESTARTING = "waiting to restart the engine"
    STOPPING = "stopping"
    FAILED = "failed"


STATUS = {Stage.READY: "ready", Stage.STOPPING: "stopping", Stage.FAILED: "failed"}


class Readiness:
    """The current stage and, once it is ready, the engine's application. One writer at a time, any reader."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, restarts: bool = False) -> None:
        """`restarts` tells whether an engine that died is followed by another."""
        self._clock = clock
        self._began = clock()
        self._entered = self._born = self._began
        self._errored: Callable[[], bool] = lambda: False
        self._stalled: Callable[[], str | None] = lambda: None
        self._application: ASGIApp | None = None
        self._restarting = False
        self._took = 0.0
        self.restarts = restarts
        """May be set to false: the next death is the last."""
        self.stage = Stage.STARTING

    def advance(self, stage: Stage) -> None:
        """Enter a stage."""
        if stage is Stage.RESTARTING:
            self._restarting = True
            self._began = self._clock()
        self.stage = stage
        self._entered = self._clock()

    def open(
        self, application: ASGIApp, errored: Callable[[], bool], stalled: Callable[[], str | None] = lambda: None
    ) -> None:
        """Become ready: requests go to `application` until the server stops or `errored()` holds.

        `stalled()` says in words that the engine makes no progress: `/readyz` tells it, requests go on.
        """
        self._application = application
        self._errored = errored
        self._stalled = stalled
        self._restarting = False
        self.advance(Stage.READY)
        self._took = self.seconds

    @property
    def seconds(self) -> float:
        """Seconds from the start of the process's work, or from the engine's death, to the current stage."""
        return self._entered - self._began

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the process began to serve."""
        return self._clock() - self._born

    @property
    def stage_seconds(self) -> float:
        """Seconds since the current stage was entered."""
        return self._clock() - self._entered

    @property
    def open_now(self) -> bool:
        """Whether requests reach the engine."""
        return self.stage is Stage.READY and not self._errored()

    @property
    def ready(self) -> bool:
        """Whether a request would be answered, as far as can be told."""
        return self.open_now and self._stalled() is None

    def lost(self) -> Unavailable | None:
        """What to tell the requests of an engine that died; `None` while it lives."""
        if self._errored() and self.stage is not Stage.STOPPING:
            retry = min(LONGEST_RETRY_S, max(5, math.ceil(self._took)))
            return (EngineRestarting if self.restarts else EngineDead)(retry_after_s=retry)
        return None

    def application(self) -> ASGIApp:
        """The engine's application.

        Raises:
            Unavailable: there is none yet, or it is going away.
        """
        if self._application is not None and self.open_now:
            return self._application
        if self.stage is Stage.STOPPING:
            raise ShuttingDown
        if (error := self.lost()) is not None:
            raise error
        raise NotReady(f"The server is not ready: {self._status()} ({self.stage}).")

    def report(self) -> dict[str, object]:
        """The body of `/readyz`."""
        report: dict[str, object] = {
            "status": self._status(),
            "stage": str(self.stage),
            "stage_seconds": round(self.stage_seconds, 1),
        }
        reason = self._reason()
        return report if reason is None else {**report, "reason": reason}

    def _status(self) -> str:
        if self.stage is not Stage.READY:
            return STATUS.get(self.stage, "restarting" if self._restarting else "loading")
        if not self._errored():
            return "ready" if self._stalled() is None else "stalled"
        return "restarting" if self.restarts else "failed"

    def _reason(self) -> str | None:
        if self._errored() and self.stage is not Stage.STOPPING:
            return "the engine died"
        return self._stalled() if self.stage is Stage.READY else None
