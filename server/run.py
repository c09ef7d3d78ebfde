# SPDX-License-Identifier: Apache-2.0
"""The life of `aerie serve`: refuse, listen, load, answer, stop.

The port opens at once and one uvicorn server keeps it for life. The engine loads in a thread of its own.
"""

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn

from aerie.server import checks, engine
from aerie.server.app import create_app
from aerie.server.children import end_children
from aerie.server.errors import BadOption, EngineFailed
from aerie.server.plan import Plan, make_plan
from aerie.server.readiness import Readiness, Stage
from aerie.server.settings import ServeSettings

WATCH_SECONDS = 0.25
LOADER_GRACE_SECONDS = 3.0


class Stopped(Exception):  # noqa: N818 - not an error: the operator asked
    """The operator asked the server to stop."""


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: a signal must also reach an engine that is loading."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`."""
        yield


class Loader(threading.Thread):
    """Loads the engine off the event loop. `result` holds the engine or what went wrong."""

    NAME = "engine-loader"

    def __init__(self, plan: Plan, readiness: Readiness) -> None:
        super().__init__(name=self.NAME, daemon=True)
        self.plan = plan
        self.readiness = readiness
        self.cancelled = threading.Event()
        self.result: engine.Engine | BaseException | None = None
        self.finished = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def run(self) -> None:
        """Load; children started here inherit a blocked SIGINT, so Ctrl-C reaches only this process."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.result = engine.load(self.plan, self._advance)
        except BaseException as error:  # handed to the event loop, which decides
            self.result = error
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.finished.set)

    def _advance(self, stage: Stage) -> None:
        if self.cancelled.is_set():
            raise Stopped
        self.readiness.advance(stage)


def run(settings: ServeSettings) -> int:
    """Serve until told to stop. Returns the exit status 0.

    Raises:
        BadOption: the settings cannot be served; no engine was started.
        EngineFailed: the engine did not start, or died.
    """
    plan = make_plan(settings)
    checks.check(plan)
    listener = checks.listen(settings.host, settings.port)
    engine.set_environment(plan)
    try:
        with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
            runner.run(serve(plan, listener))
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        listener.close()
        end_children()
    if any(thread.name == Loader.NAME for thread in threading.enumerate()):
        # Stopped in the middle of an import, which cannot be interrupted; its processes are gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


async def serve(plan: Plan, listener: socket.socket) -> None:
    """Answer on `listener` while the engine loads, works and stops.

    Raises:
        BadOption, EngineFailed: see `run`.
    """
    readiness = Readiness()
    settings = plan.settings
    server = Server(
        uvicorn.Config(
            create_app(readiness),
            log_level=settings.log_level,
            access_log=settings.access_log,
            timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
            lifespan="off",
            server_header=False,
        )
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, stop, server)
    http = asyncio.create_task(server.serve(sockets=[listener]))
    loader = Loader(plan, readiness)
    try:
        loaded = await _load(loader, stop)
        if loaded is not None:
            await _answer(loaded, readiness, server, http, stop)
    except BaseException:
        readiness.advance(Stage.FAILED)
        raise
    finally:
        server.should_exit = True
        await http


def _on_signal(stop: asyncio.Event, server: Server) -> None:
    """The first signal stops in order, the second at once."""
    server.force_exit = stop.is_set()
    stop.set()


async def _load(loader: Loader, stop: asyncio.Event) -> engine.Engine | None:
    """The loaded engine, or `None` when the operator stopped the server first."""
    loader.start()
    finished, stopping = asyncio.create_task(loader.finished.wait()), asyncio.create_task(stop.wait())
    await asyncio.wait({finished, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finished.cancel()
    stopping.cancel()
    if stop.is_set():
        loader.readiness.advance(Stage.STOPPING)
        await _abandon(loader)
        return None
    if isinstance(loader.result, engine.Engine):
        return loader.result
    if isinstance(loader.result, BadOption):
        raise loader.result
    raise EngineFailed(f"the engine did not start: {loader.result}") from loader.result


async def _answer(
    loaded: engine.Engine, readiness: Readiness, server: Server, http: asyncio.Task[None], stop: asyncio.Event
) -> None:
    """Serve requests until a signal or the engine's death, then let running requests finish and end the engine."""
    try:
        readiness.advance(Stage.OPENING)
        async with engine.open_api(loaded, server) as application:
            readiness.open(application, lambda: loaded.errored)
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


async def _abandon(loader: Loader) -> None:
    """Stop a load: its processes are killed, which ends the thread wherever it waits for them."""
    loader.cancelled.set()
    deadline = asyncio.get_running_loop().time() + LOADER_GRACE_SECONDS
    while loader.is_alive() and asyncio.get_running_loop().time() < deadline:
        await asyncio.to_thread(end_children)
        await asyncio.sleep(0.05)
