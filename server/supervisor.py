# SPDX-License-Identifier: Apache-2.0
"""The engine's life inside the server's: load, answer, notice its death, restart it or give up, drain, end."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from aerie.server.children import end_children
from aerie.server.errors import EngineFailed, ShuttingDown
from aerie.server.house import House
from aerie.server.loader import Engine, Load, Loader
from aerie.server.plan import Plan
from aerie.server.readiness import Stage

WATCH_SECONDS = 0.1
FAREWELL_SECONDS = 2.0
"""Time for requests that were ended to be told so."""
FIRST_BACK_OFF_SECONDS = 1.0
"""The pause before the first restart; each further one takes twice as long."""
LONGEST_BACK_OFF_SECONDS = 60.0
RECOVERED_SECONDS = 600.0
"""An engine that was ready for so long was no failed restart: the count begins anew."""
log = logging.getLogger(__name__)


class Supervisor:
    """Keeps an engine until the operator stops the server, or until the engine died more often than it may."""

    def __init__(
        self, plan: Plan, house: House, load: Load, stop: asyncio.Event, stop_listening: Callable[[], None]
    ) -> None:
        """`stop` ends it once it is set; `stop_listening` is called when no request is left to answer.

        The engine's processes take seconds to end, and the port is free for the next server meanwhile.
        """
        self._plan = plan
        self._house = house
        self._load = load
        self._stop = stop
        self._stop_listening = stop_listening
        self._hurry = False
        self._deaths = 0
        self._loader: Loader | None = None

    @property
    def stopping(self) -> bool:
        """Whether the operator stopped the server."""
        return self._stop.is_set()

    def signal(self) -> bool:
        """A signal of the operator: the first stops in order, the second at once. Whether it was a further one."""
        self._hurry = self._stop.is_set()
        self._stop.set()
        return self._hurry

    async def run(self) -> None:
        """Serve until told to stop; the engine's processes are gone then.

        Raises:
            BadOption, EngineFailed: see `Loader.engine`; or the engine died.
        """
        while True:
            try:
                engine = await self._loaded()
            except EngineFailed:
                if not self._deaths or self._deaths >= self._plan.settings.restart_engine:
                    raise
                log.exception("the engine did not come back")
                self._deaths += 1
                self._house.readiness.advance(Stage.RESTARTING)
                await asyncio.to_thread(end_children)
            else:
                if engine is None or await self._answer(engine):
                    return
            if not await self._pause():
                self._house.readiness.advance(Stage.STOPPING)
                return

    async def _loaded(self) -> Engine | None:
        """The loaded engine, or `None` when the operator stopped the server first."""
        loader = Loader(self._load, self._plan, self._house.readiness, self._house.telemetry)
        loader.start()
        await self._before_stop(asyncio.create_task(loader.finished.wait()))
        if self._stop.is_set():
            self._house.readiness.advance(Stage.STOPPING)
            self._stop_listening()
            await loader.abandon()
            return None
        engine, self._loader = loader.engine(), loader
        return engine

    async def _before_stop(self, work: asyncio.Task[Any]) -> bool:
        """Wait until it is done, or the operator stops the server and it is cancelled; whether it is done."""
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not work.done():
            work.cancel()
            return False
        return True

    async def _answer(self, engine: Engine) -> bool:
        """Serve requests until a signal, and drain; or until the engine's death. Whether the server is to end.

        Raises:
            EngineFailed: it died, and may not be restarted.
        """
        readiness, occupancy = self._house.readiness, self._house.occupancy
        self._house.engine = engine
        try:
            readiness.advance(Stage.OPENING)
            async with engine.open_api() as application:
                occupancy.capacity = engine.capacity
                if await self._warmed(engine):
                    readiness.restarts = self._deaths < self._plan.settings.restart_engine
                    readiness.open(application, lambda: engine.errored, self._stalled)
                    self._house.telemetry.metrics.ready_after.set(readiness.seconds)
                    log.info("ready after %.0f s", readiness.seconds)
                    await self._watch(engine)
                if self._stop.is_set():
                    await self._drain()
                    self._stop_listening()
                    return True
                await self._bury()
        finally:
            self._house.engine = None
            await asyncio.to_thread(engine.shut_down)
            if self._loader is not None:
                self._loader.release()
        # A worker whose engine core was killed is our child by now.
        await asyncio.to_thread(end_children)
        if not readiness.restarts:
            raise EngineFailed("the engine died")
        return False

    async def _warmed(self, engine: Engine) -> bool:
        """Have the engine warm up; whether it may serve: it lives, and the operator has not stopped the server.

        An engine that cannot warm up serves what it can.
        """
        self._house.readiness.advance(Stage.WARMING)
        began = time.monotonic()
        warming = asyncio.create_task(engine.warm_up())
        if not await self._before_stop(warming):
            return False
        if (error := warming.exception()) is not None:
            log.warning("the engine did not warm up: %s", error)
        log.info("warmed up in %.1f s", time.monotonic() - began)
        return not engine.errored

    async def _watch(self, engine: Engine) -> None:
        """Until a signal or the engine's death; probes an engine that is idle."""
        progress = self._house.telemetry.progress
        probe: asyncio.Task[None] | None = None
        told = None
        while not (self._stop.is_set() or engine.errored):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), WATCH_SECONDS)
            told, before = self._stalled(), told
            if (told is None) != (before is None):
                log.warning("%s", told or "the engine makes progress again")
            owes = progress.owed_seconds > WATCH_SECONDS
            due = owes or progress.idle_seconds >= self._plan.settings.probe_seconds
            if due and not progress.in_flight and (probe is None or probe.done()):
                probe = asyncio.create_task(engine.probe())
                probe.add_done_callback(_read)
        if probe is not None:
            probe.cancel()

    def _stalled(self) -> str | None:
        """In words, that the engine owes a step for too long; `None` while it does not."""
        owed = self._house.telemetry.progress.owed_seconds
        return f"the engine has made no step for {owed:.0f} s" if owed >= self._plan.settings.stall_seconds else None

    async def _drain(self) -> None:
        """Let running requests finish within the grace period, and end those that have not."""
        settings, exchanges = self._plan.settings, self._house.exchanges
        self._house.readiness.advance(Stage.STOPPING)
        log.info("stopping; %d requests may take %g s to finish", len(exchanges), settings.grace_seconds)
        if not await exchanges.drained(settings.grace_seconds, lambda: self._hurry):
            log.warning("%d requests were not finished", exchanges.interrupt(ShuttingDown()))
            await exchanges.drained(FAREWELL_SECONDS)

    async def _bury(self) -> None:
        """Tell every request that the engine is dead, and count the death."""
        readiness, telemetry, exchanges = self._house.readiness, self._house.telemetry, self._house.exchanges
        ready_for = readiness.stage_seconds
        self._deaths = 1 if ready_for >= RECOVERED_SECONDS else self._deaths + 1
        readiness.restarts = self._deaths <= self._plan.settings.restart_engine
        error = readiness.lost()
        readiness.advance(Stage.RESTARTING if readiness.restarts else Stage.FAILED)
        lost = telemetry.died()
        log.error("the engine died; requests lost: %s", ", ".join(lost) or "none")
        if error is not None:
            exchanges.interrupt(error)
            await exchanges.drained(FAREWELL_SECONDS)

    async def _pause(self) -> bool:
        """Back off before a restart; whether there is to be one."""
        seconds = min(LONGEST_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * 2 ** (self._deaths - 1))
        most = self._plan.settings.restart_engine
        log.warning("restarting the engine in %g s (%d of %d)", seconds, self._deaths, most)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return not self._stop.is_set()


def _read(probe: "asyncio.Task[None]") -> None:
    """A probe that failed is no news: the engine's death is noticed otherwise, and so is its stalling."""
    if not probe.cancelled() and (error := probe.exception()) is not None:
        log.debug("a probe ended with %r", error)
