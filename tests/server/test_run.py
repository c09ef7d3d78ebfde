# SPDX-License-Identifier: Apache-2.0
"""The life of the process around an engine that is a fake: load, answer, signals, death."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from tests.server.conftest import Advance, FakeEngine, Running

from aerie.server import checks
from aerie.server.children import children
from aerie.server.errors import BadOption, EngineFailed
from aerie.server.plan import Plan
from aerie.server.readiness import Stage
from aerie.server.run import SOCKETS_VARIABLE, private_sockets
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


def test_sockets_between_processes_lie_in_a_folder_of_ours() -> None:
    environ: dict[str, str] = {}
    with private_sockets(environ):
        folder = Path(environ[SOCKETS_VARIABLE])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "left over").touch()
    assert environ == {}
    assert not folder.exists()
    chosen = {SOCKETS_VARIABLE: "here"}
    with private_sockets(chosen):
        assert chosen == {SOCKETS_VARIABLE: "here"}


def test_a_taken_port_is_not_shared() -> None:
    with checks.listen("127.0.0.1", 0) as mine, pytest.raises(BadOption, match="in use"):
        checks.listen("127.0.0.1", mine.getsockname()[1])
