# SPDX-License-Identifier: Apache-2.0
"""Servers as processes of their own: start, wait until ready, watch their CPU time, end them whole."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.serving.cpu_time import session_seconds

SERVE = "import sys; from aerie.cli import main; sys.exit(main())"
READY_PATH = "/health"
READY_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 30.0


class ServerError(BenchmarkError):
    """A server ended or did not become ready; the message carries the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server and where it answers."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """Base address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """CPU time used so far by the server and its children."""
        return session_seconds(self.process.pid)

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Stop all its processes for the block: an idle server is not quiet, and a stopped one keeps its memory."""
        try:
            self._signal(signal.SIGSTOP)
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


NO_PROBES = ("--probe-seconds", "3600")
"""For servers beside each other: one that comes back after others' turns would ask itself for a token at once, in its
own turn. Options that follow win."""


def serve_command(port: int, arguments: Sequence[str]) -> list[str]:
    """`aerie serve` on a port of the loopback interface, in this interpreter."""
    # -P: with the repository's root as working directory, `kernels/` there would shadow another package's name.
    return [sys.executable, "-P", "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]


@contextmanager
def aerie_server(
    name: str,
    arguments: Sequence[str],
    log: Path,
    command_of: Callable[[int, Sequence[str]], list[str]] = serve_command,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """`running_server` of `aerie serve` with these arguments, on a port of its own."""
    port = free_port()
    with running_server(name, command_of(port, arguments), port, log, environment=environment) as server:
        yield server


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def wait_ready(server: Server, timeout_s: float) -> None:
    """Poll the readiness path; raises ServerError when the process ends first or the time is up."""
    deadline = time.monotonic() + timeout_s
    while not _answers(server.url + READY_PATH):
        if server.process.poll() is not None:
            raise ServerError(f"{server.name} ended with {server.process.returncode}:\n{tail(server.log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"{server.name} not ready within {timeout_s:.0f} s:\n{tail(server.log)}")
        time.sleep(0.5)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and all that are left of the session's group."""
    # The group, not the process: an engine that outlives its parent would disturb every later measurement.
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(ProcessLookupError):  # one that is halted would not hear it
            os.killpg(process.pid, signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def launched_server(
    name: str,
    command: Sequence[str],
    port: int,
    log: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """Start `command` in a process group of its own, yield it at once, and leave nothing behind.

    `environment` is added to this process's.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:

        def start() -> subprocess.Popen[bytes]:
            everything = {**os.environ, **environment}
            return subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=everything
            )

        with ended_in_order(start) as process:
            yield Server(name, port, process, log)


@contextmanager
def ended_in_order(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    """The process of `start()`, the leader of a session, which is stopped when the block ends.

    SIGTERM is a Ctrl-C for the block: what was measured is kept, and no server stays behind.
    """
    process = None
    with _handled({signal.SIGTERM: signal.default_int_handler}):
        try:
            with _deferred():
                process = start()
            yield process
        finally:
            if process is not None:
                stop(process)


@contextmanager
def _deferred() -> Iterator[None]:
    """SIGINT and SIGTERM arrive when the block has ended: whoever starts a process must know it to end it.

    They are not blocked: the process would inherit that.
    """
    arrived: list[int] = []
    with _handled(dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda number, _: arrived.append(number))):
        yield
    if arrived:
        signal.raise_signal(arrived[0])


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], object]]) -> Iterator[None]:
    """Signals have these handlers in the block; threads but the main one cannot set any."""
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def running_server(
    name: str,
    command: Sequence[str],
    port: int,
    log: Path,
    timeout_s: float = READY_TIMEOUT_S,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """`launched_server`, yielded once it is ready."""
    with launched_server(name, command, port, log, environment) as server:
        wait_ready(server, timeout_s)
        yield server
