# SPDX-License-Identifier: Apache-2.0
"""Loading an engine beside the event loop that already answers probes."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from multiprocessing import resource_tracker
from typing import Protocol

from starlette.types import ASGIApp

from aerie.server import failure
from aerie.server.children import end_children
from aerie.server.errors import BadOption, EngineFailed
from aerie.server.occupancy import Capacity
from aerie.server.plan import Plan
from aerie.server.readiness import Readiness, Stage
from aerie.server.telemetry import Telemetry

GRACE_SECONDS = 3.0
log = logging.getLogger(__name__)


class Engine(Protocol):
    """What the server needs of an engine."""

    @property
    def errored(self) -> bool:
        """Whether it died."""

    @property
    def capacity(self) -> Capacity:
        """What it works on at once."""

    @property
    def kernels(self) -> list[str]:
        """Which kernel serves which layers, a line each; known once the API is open."""

    def open_api(self) -> AbstractAsyncContextManager[ASGIApp]:
        """The application over it."""

    async def warm_up(self) -> None:
        """Have it compile what its first requests would wait for; returns when it has."""

    async def probe(self) -> None:
        """Have it make one token; returns when it has."""

    def shut_down(self) -> None:
        """End its processes; returns when they are gone."""


Load = Callable[[Plan, Callable[[Stage], None], Telemetry], Engine]


class Cancelled(Exception):  # noqa: N818 - not an error: the operator asked
    """Raised inside the loading thread at its next stage."""


class Loader(threading.Thread):
    """Runs `load` in a daemon thread; `finished` is set on the event loop when it has an engine or an error."""

    def __init__(self, load: Load, plan: Plan, readiness: Readiness, telemetry: Telemetry) -> None:
        super().__init__(name="engine-loader", daemon=True)
        self.finished = asyncio.Event()
        self._load = load
        self._plan = plan
        self._readiness = readiness
        self._telemetry = telemetry
        self._cancelled = threading.Event()
        self._loaded = threading.Event()
        self._released = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._engine: Engine | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Load, and live as long as the engine: its processes are killed when the thread that started them ends.

        They inherit blocked signals, so that Ctrl-C and a terminal that hangs up reach the server alone.
        """
        # The tracker ignores SIGINT itself, and whoever starts it finds SIGINT unblocked again.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        failure.forget()
        try:
            self._engine = self._load(self._plan, self._advance, self._telemetry)
        except BaseException as error:  # handed to the event loop, which decides
            self._error = error
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(self.finished.set)
        self._loaded.set()
        if self._engine is not None:
            self._released.wait()

    def release(self) -> None:
        """Let the thread end: the engine is gone."""
        self._released.set()

    def _advance(self, stage: Stage) -> None:
        if self._cancelled.is_set():
            raise Cancelled
        log.info("%s", stage)
        self._readiness.advance(stage)

    def engine(self) -> Engine:
        """The engine, after `finished`.

        Raises:
            BadOption: an option that only vLLM could judge.
            EngineFailed: anything else went wrong.
        """
        if self._engine is not None:
            return self._engine
        if isinstance(self._error, BadOption):
            raise self._error
        raise EngineFailed(f"the engine did not start: {failure.explain(self._error)}") from self._error

    async def abandon(self) -> None:
        """Stop loading: without its processes the thread ends wherever it waits for them."""
        self._cancelled.set()
        # What follows is on purpose; vLLM's account of processes that died would only alarm.
        logging.getLogger("vllm").setLevel(logging.CRITICAL + 1)
        clock = asyncio.get_running_loop().time
        deadline = clock() + GRACE_SECONDS
        while not self._loaded.is_set() and clock() < deadline:
            await asyncio.to_thread(end_children)
            await asyncio.sleep(0.05)
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shut_down)
        self.release()
