# SPDX-License-Identifier: Apache-2.0
"""Drain, death and restart, over a real socket and an engine that is a fake."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from tests.server.conftest import Advance, FakeEngine, Running

from aerie.server.errors import EngineFailed
from aerie.server.plan import Plan
from aerie.server.readiness import Stage
from aerie.server.telemetry import Telemetry

SOON = 60.0  # a loaded machine


def told(plan: Plan, **options: float) -> Plan:
    """The plan with other options."""
    return replace(plan, settings=plan.settings.model_copy(update=options))


class Slow:
    """An application that answers once it may, and is told when its client goes away."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.reached = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached.set()
        await receive()
        gone = asyncio.ensure_future(receive())
        await asyncio.wait({gone, asyncio.ensure_future(self.may.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.left.set()
            return
        gone.cancel()
        await PlainTextResponse("at last")(scope, receive, send)


async def test_a_drain_finishes_what_runs_and_refuses_what_comes(plan: Plan) -> None:
    slow = Slow()
    running = Running(told(plan, grace_seconds=60), lambda *_: FakeEngine(slow))
    async with asyncio.timeout(SOON):
        await running.until("ready")
        asked = asyncio.create_task(running.get("/v1/models"))
        await slow.reached.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await running.until("stopping")
        refused = await running.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["connection"] == "close"
        assert (await running.get("/livez")).status_code == 200
        slow.may.set()
        assert (await asked).text == "at last"
        await running.task


async def test_a_drain_has_an_end(plan: Plan) -> None:
    slow = Slow()
    running = Running(told(plan, grace_seconds=0.1), lambda *_: FakeEngine(slow))
    async with asyncio.timeout(SOON):
        await running.until("ready")
        asked = asyncio.create_task(running.get("/v1/models"))
        await slow.reached.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await asked).json()["error"]["code"] == "shutting_down"
        await running.task
    assert slow.left.is_set()


async def test_a_second_signal_does_not_wait(plan: Plan) -> None:
    slow = Slow()
    running = Running(told(plan, grace_seconds=3600), lambda *_: FakeEngine(slow))
    async with asyncio.timeout(SOON):
        await running.until("ready")
        asked = asyncio.create_task(running.get("/v1/models"))
        await slow.reached.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await running.until("stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await asked).status_code == 503
        await running.task


async def test_a_closed_connection_reaches_the_engine_through_every_middleware(plan: Plan) -> None:
    slow = Slow()
    running = Running(plan, lambda *_: FakeEngine(slow))
    async with asyncio.timeout(SOON):
        await running.until("ready")
        _, writer = await asyncio.open_connection(*running.listener.getsockname())
        body = b'{"max_tokens": 1}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await slow.reached.wait()
        writer.close()
        await writer.wait_closed()
        await slow.left.wait()
        await running.end()


async def test_a_request_whose_engine_dies_is_told_so(plan: Plan) -> None:
    slow = Slow()
    engine = FakeEngine(slow)
    running = Running(plan, lambda *_: engine)
    async with asyncio.timeout(SOON):
        await running.until("ready")
        asked = asyncio.create_task(running.get("/v1/models"))
        await slow.reached.wait()
        engine.errored = True
        answer = await asked
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
        assert "retry-after" in answer.headers
        with pytest.raises(EngineFailed):
            await running.task


async def test_an_engine_is_restarted_as_often_as_allowed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerie.server.supervisor.FIRST_BACK_OFF_SECONDS", 0.01)
    engines = [FakeEngine(PlainTextResponse(name)) for name in ("first", "second")]
    left = iter(engines)
    running = Running(told(plan, restart_engine=1), lambda *_: next(left))
    async with asyncio.timeout(SOON):
        await running.until("ready")
        assert (await running.get("/v1/models")).text == "first"
        engines[0].errored = True
        while (answer := await running.get("/v1/models")).text != "second":
            assert answer.json()["error"]["code"] == "engine_restarting"
        assert engines[0].is_shut_down
        assert [engine.warm_ups for engine in engines] == [1, 1]
        assert (await running.get("/aerie/status")).json()["engine_deaths"] == 1
        engines[1].errored = True
        with pytest.raises(EngineFailed, match="the engine died"):
            await running.task
    assert engines[1].is_shut_down


async def test_a_restart_that_fails_counts_too(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerie.server.supervisor.FIRST_BACK_OFF_SECONDS", 0.01)
    engine, loads = FakeEngine(), []

    def load(plan: Plan, advance: Advance, telemetry: Telemetry) -> FakeEngine:
        loads.append(advance)
        if len(loads) > 1:
            raise RuntimeError("no memory")
        return engine

    running = Running(told(plan, restart_engine=2), load)
    async with asyncio.timeout(SOON):
        await running.until("ready")
        engine.errored = True
        with pytest.raises(EngineFailed, match="no memory"):
            await running.task
    assert len(loads) == 3


async def test_a_signal_ends_the_wait_for_a_restart(plan: Plan) -> None:
    engine = FakeEngine()
    running = Running(told(plan, restart_engine=9), lambda *_: engine)
    async with asyncio.timeout(SOON):
        await running.until("ready")
        engine.errored = True
        await running.until("restarting")
        await running.end()


async def test_an_idle_engine_is_probed(plan: Plan) -> None:
    engine = FakeEngine()
    running = Running(told(plan, probe_seconds=0), lambda *_: engine)
    async with asyncio.timeout(SOON):
        while not engine.probes:
            await asyncio.sleep(0.01)
        await running.end()


async def test_an_engine_is_warm_before_it_is_ready(plan: Plan) -> None:
    engine = FakeEngine()
    engine.may_warm.clear()
    running = Running(plan, lambda *_: engine)
    async with asyncio.timeout(SOON):
        while (state := await running.get("/readyz")).json()["stage"] != Stage.WARMING:
            await asyncio.sleep(0.01)
        assert (state.status_code, state.json()["status"]) == (503, "loading")
        engine.may_warm.set()
        await running.until("ready")
        await running.end()


async def test_a_signal_ends_the_warm_up(plan: Plan) -> None:
    engine = FakeEngine()
    engine.may_warm.clear()
    running = Running(plan, lambda *_: engine)
    async with asyncio.timeout(SOON):
        while not engine.warm_ups:
            await asyncio.sleep(0.01)
        await running.end()
    assert engine.is_shut_down


class Unwarmable(FakeEngine):
    """It refuses to warm up, and may die of it."""

    def __init__(self, *, dies: bool) -> None:
        super().__init__()
        self.dies = dies

    async def warm_up(self) -> None:
        self.errored = self.dies
        raise RuntimeError("no logprobs here")


async def test_an_engine_that_refuses_to_warm_up_serves_all_the_same(plan: Plan) -> None:
    running = Running(plan, lambda *_: Unwarmable(dies=False))
    async with asyncio.timeout(SOON):
        await running.until("ready")
        await running.end()


async def test_an_engine_that_dies_while_it_warms_up_is_restarted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerie.server.supervisor.FIRST_BACK_OFF_SECONDS", 0.01)
    left = iter([Unwarmable(dies=True), FakeEngine()])
    running = Running(told(plan, restart_engine=1), lambda *_: next(left))
    async with asyncio.timeout(SOON):
        await running.until("ready")
        assert (await running.get("/aerie/status")).json()["engine_deaths"] == 1
        await running.end()
