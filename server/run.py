# SPDX-License-Identifier: Apache-2.0
"""The life of `aerie serve`: refuse, listen, load, answer, stop.

The port opens at once and one uvicorn server keeps it for life, through a drain and an engine's death; `supervisor` has
the engine.
"""

import asyncio
import contextlib
import copy
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, MutableMapping

import uvicorn

from aerie.server import account, checks, engine, failure, trust
from aerie.server.app import create_app
from aerie.server.children import adopt_orphans, end_children
from aerie.server.connection import ConnectionLimits, limited
from aerie.server.environment import set_environment
from aerie.server.house import House
from aerie.server.loader import Load
from aerie.server.log_streams import keep_writable
from aerie.server.plan import Plan, make_plan
from aerie.server.readiness import Stage
from aerie.server.settings import ServeSettings
from aerie.server.signals import stop_signals
from aerie.server.sources import misspelt
from aerie.server.supervisor import Supervisor
from aerie.server.tls import Connection, open_context, secured

SOCKETS_VARIABLE = "VLLM_RPC_BASE_PATH"
CLOSING_SECONDS = 2
"""For uvicorn to close connections once the supervisor has drained them."""
log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: a signal must also reach an engine that is loading."""

    def stop_listening(self) -> None:
        """Free the port for the next server, and close connections; `serve` of this one ends."""
        self.should_exit = True

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
    stops = stop_signals()
    for number in stops:
        signal.signal(number, _end)
    keep_writable()
    account.check_open_files(settings.max_connections)
    trust.check_process(settings, os.environ)
    plan = make_plan(settings)
    trust.check_checkpoints(plan)
    checks.check(plan)
    listener = checks.listen(settings.host, settings.port)
    set_environment(plan)
    adopt_orphans()
    try:
        with (
            private_folder(os.environ),
            asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner,
        ):
            runner.run(serve(plan, listener, engine.load))
    finally:
        for number in stops:
            signal.signal(number, signal.SIG_IGN)
        listener.close()
        end_children()


@contextlib.contextmanager
def private_folder(environ: MutableMapping[str, str]) -> Iterator[None]:
    """A folder of this user alone for what the processes of the engine share: their sockets, and why one failed.

    Whoever connects to a socket is believed, and vLLM's own place is the folder for everybody's temporary files. A
    folder for sockets that the operator names is kept.
    """
    with tempfile.TemporaryDirectory(prefix="aerie-", ignore_cleanup_errors=True) as folder:
        mine = {failure.FOLDER_VARIABLE: folder}
        if not environ.get(SOCKETS_VARIABLE):
            mine[SOCKETS_VARIABLE] = folder
        environ.update(mine)
        try:
            yield
        finally:
            for name in mine:
                del environ[name]


async def serve(plan: Plan, listener: socket.socket, load: Load) -> None:
    """Answer on `listener` while the engine loads, works and stops.

    Raises:
        BadOption, EngineFailed: see `run`.
    """
    house = House(plan.settings, positions=plan.speculation.draft_tokens)
    house.plan = plan
    server = Server(uvicorn_config(plan, house))
    log.info("listening on %s", address(plan.settings, listener))
    log.info("%s", plan)
    log.info("speculation: %s", plan.speculation.text)
    if plan.speculation.warning is not None:
        log.warning("%s", plan.speculation.warning)
    for remark in misspelt(os.environ):
        log.warning("%s", remark)
    stop = asyncio.Event()
    supervisor = Supervisor(plan, house, load, stop, server.stop_listening)
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, number, supervisor, server)
    http = asyncio.create_task(server.serve(sockets=[listener]))
    http.add_done_callback(lambda _: stop.set())
    while not (server.started or http.done()):  # stopped before it has started, uvicorn leaves the port open
        await asyncio.sleep(0.01)
    try:
        await supervisor.run()
    except BaseException:
        house.readiness.advance(Stage.FAILED)
        raise
    finally:
        server.stop_listening()
        await http


def address(settings: ServeSettings, listener: socket.socket) -> str:
    """The URL that clients use."""
    host, port = listener.getsockname()[:2]
    scheme = "http" if settings.ssl_certfile is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def uvicorn_config(plan: Plan, house: House) -> uvicorn.Config:
    """The configuration of uvicorn over our application, its log format used for our lines too."""
    settings = plan.settings
    logs = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["loggers"]["aerie"] = {"handlers": ["default"], "level": settings.log_level.upper(), "propagate": False}
    limits = ConnectionLimits(
        connections=settings.max_connections,
        header_bytes=settings.max_header_bytes,
        header_seconds=settings.header_seconds,
        write_seconds=settings.write_seconds,
    )
    connection: Connection = limited(limits)
    context = open_context(settings)
    return uvicorn.Config(
        create_app(settings, house),
        http=connection if context is None else secured(connection, context, limits),  # type: ignore[arg-type]
        ws="none",
        log_config=logs,
        log_level=settings.log_level,
        access_log=settings.access_log,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        lifespan="off",
        server_header=False,
    )


def _end(number: int, frame: object) -> None:
    """A signal before the event loop listens to it."""
    sys.exit(0)


def _on_signal(number: signal.Signals, supervisor: Supervisor, server: Server) -> None:
    """The first signal stops in order, the second at once. A closed terminal may send several of its own."""
    if number is not signal.SIGHUP or not supervisor.stopping:
        server.force_exit = supervisor.signal()
