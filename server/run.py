# SPDX-License-Identifier: Apache-2.0
"""The life of `aerie serve`: refuse, listen, load, answer, stop.

The port opens at once and one uvicorn server keeps it for life; the engine loads in a thread of its own meanwhile.
"""

import asyncio
import contextlib
import copy
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from aerie.server import checks, engine
from aerie.server.app import create_app
from aerie.server.children import adopt_orphans, end_children
from aerie.server.errors import EngineFailed
from aerie.server.loader import Engine, Load, Loader
from aerie.server.plan import Plan, make_plan
from aerie.server.readiness import Readiness, Stage
from aerie.server.settings import ServeSettings
from aerie.server.sources import misspelt

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
WATCH_SECONDS = 0.25
log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: a signal must also reach an engine that is loading."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`."""
        yield


def run(settings: ServeSettings) -> None:
    """Serve until told to stop; no process is left afterwards. A thread may be, in the middle of an import.

    Raises:
        BadOption: the settings cannot be served; no engine was started.
        EngineFailed: the engine did not start, or died.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _end)
    plan = make_plan(settings)
    checks.check(plan)
    listener = checks.listen(settings.host, settings.port)
    engine.set_environment(plan)
    adopt_orphans()
    try:
        with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
            runner.run(serve(plan, listener, engine.load))
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        listener.close()
        end_children()


async def serve(plan: Plan, listener: socket.socket, load: Load) -> None:
    """Answer on `listener` while the engine loads, works and stops.

    Raises:
        BadOption, EngineFailed: see `run`.
    """
    readiness = Readiness()
    server = Server(uvicorn_config(plan, readiness))
    log.info("%s", plan)
    for remark in misspelt(os.environ):
        log.warning("%s", remark)
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, stop, server)
    http = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started or http.done()):  # stopped before it has started, uvicorn leaves the port open
        await asyncio.sleep(0.01)
    try:
        loaded = await _load(Loader(load, plan, readiness), readiness, stop)
        if loaded is not None:
            await _answer(loaded, readiness, server, http, stop)
    except BaseException:
        readiness.advance(Stage.FAILED)
        raise
    finally:
        server.should_exit = True
        await http


def uvicorn_config(plan: Plan, readiness: Readiness) -> uvicorn.Config:
    """The configuration of uvicorn over our application, its log format used for our lines too."""
    settings = plan.settings
    logs = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["loggers"]["aerie"] = {"handlers": ["default"], "level": settings.log_level.upper(), "propagate": False}
    return uvicorn.Config(
        create_app(readiness),
        log_config=logs,
        log_level=settings.log_level,
        access_log=settings.access_log,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
        lifespan="off",
        server_header=False,
    )


def _end(number: int, frame: object) -> None:
    """A signal before the event loop listens to it."""
    sys.exit(0)


def _on_signal(stop: asyncio.Event, server: Server) -> None:
    """The first signal stops in order, the second at once."""
    server.force_exit = stop.is_set()
    stop.set()


async def _load(loader: Loader, readiness: Readiness, stop: asyncio.Event) -> Engine | None:
    """The loaded engine, or `None` when the operator stopped the server first."""
    loader.start()
    waits = [asyncio.create_task(event.wait()) for event in (loader.finished, stop)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if stop.is_set():
        readiness.advance(Stage.STOPPING)
        await loader.abandon()
        return None
    return loader.engine()


async def _answer(
    loaded: Engine, readiness: Readiness, server: Server, http: asyncio.Task[None], stop: asyncio.Event
) -> None:
    """Serve requests until a signal or the engine's death, then let running requests finish and end the engine."""
    try:
        readiness.advance(Stage.OPENING)
        async with loaded.open_api(server) as application:
            readiness.open(application, lambda: loaded.errored)
            log.info("ready after %.0f s", readiness.seconds)
            while not (stop.is_set() or loaded.errored or http.done()):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), WATCH_SECONDS)
            died = not stop.is_set()
            readiness.advance(Stage.FAILED if died else Stage.STOPPING)
            server.should_exit = True
            await asyncio.wait({http})
    finally:
        await asyncio.to_thread(loaded.shut_down)
    if died:
        raise EngineFailed("the engine died")
