# SPDX-License-Identifier: Apache-2.0
"""The life of the process around an engine that is a fake: load, answer, signals, death."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.server.conftest import Advance, FakeEngine, Running

from aerie.server import checks
from aerie.server.children import children
from aerie.server.errors import BadOption, EngineFailed
from aerie.server.plan import Plan
from aerie.server.readiness import Stage
from aerie.server.run import SOCKETS_VARIABLE, private_folder
from aerie.server.telemetry import Telemetry

SOON = 60.0  # a loaded machine


async def test_the_port_answers_while_the_engine_loads_and_then_serves(plan: Plan) -> None:
    gate, engine = threading.Event(), FakeEngine()

    def load(plan: Plan, advance: Advance, telemetry: Telemetry) -> FakeEngine:
        advance(Stage.LOADING)
        gate.wait()
        return engine

    running = Running(plan, load)
    async with asyncio.timeout(SOON):
        while (ready := await running.get("/readyz")).json()["stage"] != Stage.LOADING:
            await asyncio.sleep(0.01)
        assert ready.status_code == 503
        assert (await running.get("/livez")).status_code == 200
        assert (await running.get("/v1/models")).json()["error"]["code"] == "not_ready"
        gate.set()
        await running.until("ready")
        assert (await running.get("/v1/models")).text == "answer"
        os.kill(os.getpid(), signal.SIGTERM)
        await running.task
    assert engine.is_shut_down


@pytest.fixture
def terminal() -> Iterator[None]:
    """Not under `nohup`, whoever runs the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_while_loading_ends_the_processes_of_the_load(plan: Plan, number: signal.Signals) -> None:
    started = threading.Event()

    def load(plan: Plan, advance: Advance, telemetry: Telemetry) -> FakeEngine:
        advance(Stage.LOADING)
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
            started.set()
            process.wait()
        raise RuntimeError("the engine core died")

    running = Running(plan, load)
    async with asyncio.timeout(SOON):
        await asyncio.to_thread(started.wait)
        os.kill(os.getpid(), number)
        await running.task
    assert children() == []


async def test_a_load_that_goes_on_is_stopped_at_its_next_stage(plan: Plan) -> None:
    gate = threading.Event()
    reached: list[Stage] = []

    def load(plan: Plan, advance: Advance, telemetry: Telemetry) -> FakeEngine:
        for stage in (Stage.IMPORTING, Stage.LOADING):
            advance(stage)
            reached.append(stage)
            gate.wait()
        return FakeEngine()

    running = Running(plan, load)
    async with asyncio.timeout(SOON):
        while not reached:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.1)
        gate.set()
        await running.task
    assert reached == [Stage.IMPORTING]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(BadOption("--reasoning-parser", "unknown", "choose"), BadOption), (RuntimeError("no memory"), EngineFailed)],
)
async def test_a_load_that_fails_ends_the_server(plan: Plan, raised: Exception, expected: type[Exception]) -> None:
    def load(plan: Plan, advance: Advance, telemetry: Telemetry) -> FakeEngine:
        raise raised

    running = Running(plan, load)
    with pytest.raises(expected, match=str(raised).split(";", maxsplit=1)[0]):
        await asyncio.wait_for(running.task, SOON)
    with pytest.raises(httpx.ConnectError):
        await running.get("/livez")


async def test_the_death_of_the_engine_ends_the_server_with_an_error(plan: Plan) -> None:
    engine = FakeEngine()
    running = Running(plan, lambda *_: engine)
    async with asyncio.timeout(SOON):
        await running.until("ready")
        engine.errored = True
        with pytest.raises(EngineFailed, match="the engine died"):
            await running.task
    assert engine.is_shut_down


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_the_command_line_is_imported_ends_it_in_order(number: str) -> None:
    done = importing("serve", number)
    assert (done.returncode, done.stderr) == (0, "")


def test_hanging_up_is_ignored_under_nohup_and_no_other_command_takes_signals() -> None:
    assert importing("serve", "SIGHUP", ignored=True).returncode == AFTER_IMPORT
    assert importing("doctor", "SIGTERM").returncode == -signal.SIGTERM


AFTER_IMPORT = 7


def importing(command: str, number: str, *, ignored: bool = False) -> subprocess.CompletedProcess[str]:
    """`aerie COMMAND`, which gets a signal where it would import the command line, and would end with a status."""
    code = f"""
import os, signal, sys

class Signal:
    def find_spec(self, name, path, target=None):
        if name == "aerie.cli":
            try:
                os.kill(os.getpid(), signal.{number})
            except BaseException:  # as libraries catch what fails while they are imported
                pass
            os._exit({AFTER_IMPORT})

signal.signal(signal.SIGHUP, signal.{"SIG_IGN" if ignored else "SIG_DFL"})
sys.meta_path.insert(0, Signal())
sys.argv = ["aerie", "{command}"]
from aerie.__main__ import main
main()
"""
    command_line = [sys.executable, "-P", "-c", code]
    return subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=SOON)


@pytest.mark.usefixtures("terminal")
async def test_the_port_is_free_before_the_engine_is_gone_and_a_terminal_hangs_up_more_than_once(plan: Plan) -> None:
    going, gone = threading.Event(), threading.Event()

    class Lingering(FakeEngine):
        def shut_down(self) -> None:
            going.set()
            gone.wait(SOON)

    running = Running(plan, lambda *_: Lingering())
    port = running.listener.getsockname()[1]
    async with asyncio.timeout(SOON):
        await running.until("ready")
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.to_thread(going.wait)
        while running.listener.fileno() != -1:
            await asyncio.sleep(0.01)
        checks.listen("127.0.0.1", port).close()
        assert not running.task.done()
        gone.set()
        await running.task


async def test_the_thread_that_started_an_engine_lives_as_long_as_the_engine(plan: Plan) -> None:
    threads: list[threading.Thread] = []

    def load(plan: Plan, advance: Advance, telemetry: Telemetry) -> FakeEngine:
        threads.append(threading.current_thread())
        return FakeEngine()

    running = Running(plan, load)
    async with asyncio.timeout(SOON):
        await running.until("ready")
        assert threads[0].is_alive()
        await running.end()
    threads[0].join(SOON)
    assert not threads[0].is_alive()


def test_sockets_between_processes_lie_in_a_folder_of_ours() -> None:
    environ: dict[str, str] = {}
    with private_folder(environ):
        folder = Path(environ[SOCKETS_VARIABLE])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "left over").touch()
    assert environ == {}
    assert not folder.exists()
    named = {SOCKETS_VARIABLE: "here"}
    with private_folder(named):
        assert named[SOCKETS_VARIABLE] == "here"
    assert named == {SOCKETS_VARIABLE: "here"}


def test_a_taken_port_is_not_shared() -> None:
    with checks.listen("127.0.0.1", 0) as mine, pytest.raises(BadOption, match="in use"):
        checks.listen("127.0.0.1", mine.getsockname()[1])
