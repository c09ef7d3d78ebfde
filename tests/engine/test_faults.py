# SPDX-License-Identifier: Apache-2.0
"""`aerie serve` when something goes wrong: clients that leave, an overload, a hung worker, processes that are killed.

Two engines serve all of it: the first one is drained at last, the second one is killed, restarted and killed again.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

from aerie.draft_models.contract import GateKind

if TYPE_CHECKING:
    from tests.engine.conftest import Server

pytestmark = pytest.mark.engine

Start = Callable[..., AbstractContextManager["Server"]]
SEATS, QUEUE = 4, 2
STALL_SECONDS = 3
FREED_SECONDS = 2  # what the server promises
EXIT_SECONDS = 10  # likewise
PATIENCE = 300  # a loaded machine
SETTLED_SECONDS = 1.0  # without another line: all that the engine had said is there
LONG: dict[str, Any] = {"model": "target", "prompt": "A cough", "max_tokens": 480, "ignore_eos": True}


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture(scope="module")
def server(start: Start, tiny_drafts: Mapping[GateKind, Path]) -> Iterator["Server"]:
    """The first engine; the last of its tests drains it."""
    options = ["--draft", str(tiny_drafts["elementwise"]), "--max-num-seqs", str(SEATS)]
    options += ["--max-queued-requests", str(QUEUE), "--stall-seconds", str(STALL_SECONDS), "--probe-seconds", "1"]
    with start(*options) as started:
        started.wait_for(lambda state: state["status"] == "ready")
        yield started


@pytest.fixture(scope="module")
def mortal(start: Start) -> Iterator["Server"]:
    """The second engine, which is restarted once."""
    with start("--draft", "none", "--restart-engine", "1") as started:
        started.wait_for(lambda state: state["status"] == "ready")
        assert post(started, max_tokens=1).status_code == 200  # the first takes longer than all that the tests wait for
        yield started


def post(server: "Server", **fields: Any) -> httpx.Response:  # noqa: ANN401 - JSON values
    return httpx.post(f"{server.address}/v1/completions", json={**LONG, **fields}, timeout=PATIENCE, trust_env=False)


def until(reached: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Wait until `reached()` holds; the seconds that took."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


class Stream:
    """A streamed completion, read in a thread."""

    def __init__(self, server: "Server", threads: ThreadPoolExecutor) -> None:
        self.began = threading.Event()
        self.lines: list[str] = []
        self._address = server.address
        self.read: Future[None] = threads.submit(self._read)

    def _read(self) -> None:
        url = f"{self._address}/v1/completions"
        body = {**LONG, "stream": True, "stream_options": {"include_usage": True}}
        with httpx.stream("POST", url, json=body, timeout=PATIENCE, trust_env=False) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line:
                    self.lines.append(line)
                    self.began.set()

    @property
    def events(self) -> list[Any]:
        self.read.result(PATIENCE)
        return [json.loads(line.removeprefix("data: ")) for line in self.lines if line != "data: [DONE]"]


def stuck(server: "Server", threads: ThreadPoolExecutor, worker: psutil.Process) -> Stream:
    """A stream that has begun and is not whole, and a worker that stands still.

    A tiny model may have said all before the worker is stopped, and its words still be on their way: then again.
    """
    while True:
        stream = Stream(server, threads)
        assert stream.began.wait(PATIENCE)
        worker.suspend()
        arrived = -1
        while arrived != len(stream.lines):
            arrived = len(stream.lines)
            time.sleep(SETTLED_SECONDS)
        if not stream.read.done():
            return stream
        worker.resume()


@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_connection_frees_the_engine(server: "Server", stream: bool) -> None:
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    body = json.dumps({**LONG, "n": SEATS, "stream": stream}).encode()
    with httpx.Client(trust_env=False, timeout=PATIENCE) as http:
        request = http.build_request("POST", f"{server.address}/v1/completions", content=body)
        request.headers["content-type"] = "application/json"
        if stream:
            answer = http.send(request, stream=True)
            next(answer.iter_lines())
            answer.close()
        else:
            with contextlib.suppress(httpx.ReadTimeout):
                request.extensions["timeout"] = {"connect": 5, "write": 5, "read": 0.5, "pool": 5}
                http.send(request)
    freed = until(lambda: server.get("/aerie/status").json()["queue"]["admitted"] == 0, FREED_SECONDS)
    freed += until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0, PATIENCE)
    assert freed < FREED_SECONDS
    assert server.metric("vllm:num_requests_running") == 0


def test_a_client_sets_its_own_time(server: "Server") -> None:
    answer = httpx.post(
        f"{server.address}/v1/completions", json={**LONG, "n": SEATS}, headers={"X-Request-Timeout": "0.3"},
        timeout=PATIENCE, trust_env=False,
    )  # fmt: skip
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
    until(lambda: server.metric("vllm:num_requests_running") == 0, FREED_SECONDS)


def test_more_than_the_queue_holds_is_refused_and_the_rest_is_served(
    server: "Server", threads: ThreadPoolExecutor
) -> None:
    # So many and so long that they meet, however fast the engine and however slow this process.
    asked = [threads.submit(post, server) for _ in range(5 * (SEATS + QUEUE))]
    answers = [future.result(PATIENCE) for future in asked]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(answers) - len(refused) >= SEATS + QUEUE
    assert {answer.status_code for answer in answers} == {200, 503}
    assert {answer.json()["error"]["code"] for answer in refused} == {"overloaded"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    assert server.metric("aerie:rejected_requests_total") >= len(refused)


def test_metrics_and_status_tell_of_the_drafts(server: "Server") -> None:
    status = server.get("/aerie/status").json()
    assert (status["status"], status["draft_tokens"]) == ("ready", 4)
    assert status["acceptance"]["drafted_tokens"] >= status["acceptance"]["accepted_tokens"] > 0
    assert any("serves" in line and line.startswith("Qwen3ForCausalLM") for line in status["kernels"])
    assert server.metric("aerie:acceptance_length_count") > 0
    assert server.metric("aerie:drafted_tokens_total") >= server.metric("aerie:accepted_tokens_total") > 0
    assert server.metric("aerie:queue_wait_seconds_count") > 0
    assert server.metric("aerie:ready_after_seconds") > 0
    assert server.metric("vllm:num_requests_running") == 0


def test_a_hung_worker_is_noticed_while_idle_and_while_busy(server: "Server", threads: ThreadPoolExecutor) -> None:
    worker = server.running("Worker")
    for asked in (None, lambda: threads.submit(post, server, max_tokens=20)):
        worker.suspend()
        try:
            answer = None if asked is None else asked()
            until(lambda: server.get("/readyz").status_code == 503)
            report = server.get("/readyz").json()
            assert report["status"] == "stalled"
            assert "no step" in report["reason"]
            assert server.get("/livez").status_code == 200
        finally:
            worker.resume()
        until(lambda: server.get("/readyz").status_code == 200)
        assert answer is None or answer.result(PATIENCE).status_code == 200


def test_a_port_that_is_taken_is_refused(server: "Server") -> None:
    port = server.address.rsplit(":", 1)[1]
    command = [sys.executable, "-P", "-m", "aerie", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=server.log.parent)
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_a_second_server_of_the_checkpoint_works_beside_the_first_and_without_room_for_its_log(
    server: "Server", start: Start
) -> None:
    greedy = {"max_tokens": 24, "temperature": 0}
    expected = post(server, **greedy).json()["choices"][0]["text"]
    with start("--draft", "none", "--access-log", full_disk=True) as second:
        second.wait_for(lambda state: state["status"] == "ready")
        answers = [post(one, **greedy) for one in (second, server)]
        assert [answer.json()["choices"][0]["text"] for answer in answers] == [expected, expected]
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(PATIENCE) == 0
        assert second.left() == []
    assert post(server, **greedy).json()["choices"][0]["text"] == expected


def test_a_signal_under_load_drains(server: "Server", threads: ThreadPoolExecutor) -> None:
    # Keep it the last test that uses `server`.
    worker = server.running("Worker")
    stream = stuck(server, threads, worker)  # the port is open as long as it has no end
    # As of a terminal that hangs up: every process gets it.
    os.killpg(server.process.pid, signal.SIGHUP)
    until(lambda: server.get("/readyz").json()["status"] == "stopping")
    assert server.get("/readyz").status_code == 503
    refused = post(server)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert refused.headers["connection"] == "close"
    worker.resume()
    assert stream.events[-1]["usage"]["completion_tokens"] == LONG["max_tokens"]
    assert stream.lines[-1] == "data: [DONE]"
    assert server.process.wait(PATIENCE) == 0, server.log.read_text()
    assert server.left() == []
    assert "Traceback" not in server.log.read_text()


def test_a_killed_engine_core_is_told_to_every_request_and_restarted(
    mortal: "Server", threads: ThreadPoolExecutor
) -> None:
    core, worker = mortal.running("EngineCore"), mortal.running("Worker")
    stream = stuck(mortal, threads, worker)  # both requests are in the engine when it dies, however fast it is
    unstreamed = threads.submit(post, mortal)
    until(lambda: mortal.get("/aerie/status").json()["queue"]["admitted"] == 2)
    core.kill()
    worker.resume()
    until(lambda: mortal.get("/readyz").status_code == 503, 1)
    assert mortal.get("/readyz").json()["status"] == "restarting"
    answer = unstreamed.result(PATIENCE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarting")
    assert int(answer.headers["retry-after"]) > 0
    errors = [event["error"]["code"] for event in stream.events if "error" in event]
    assert errors == ["engine_restarting"]
    assert json.loads(stream.lines[-1].removeprefix("data: "))["error"]["code"] == "engine_restarting"
    until(lambda: "the engine died; requests lost: " in mortal.log.read_text())  # the answers may be there first
    lost = next(line for line in mortal.log.read_text().splitlines() if "the engine died; requests lost: " in line)
    assert stream.events[0]["id"] in lost
    mortal.wait_for(lambda state: state["status"] == "ready")
    assert post(mortal, max_tokens=5).status_code == 200
    assert mortal.metric("aerie:engine_deaths_total") == 1
    assert mortal.metric("aerie:lost_requests_total") == 2


def test_a_killed_worker_ends_the_process_once_there_are_no_restarts_left(
    mortal: "Server", threads: ThreadPoolExecutor
) -> None:
    # After the test above, of which it uses the restarted engine.
    log = mortal.log.read_text()
    assert (log.count("warmed up in"), log.count("did not warm up")) == (2, 0)
    assert mortal.get("/aerie/status").json()["engine_deaths"] == 1
    worker = mortal.running("Worker")
    stream = stuck(mortal, threads, worker)
    worker.kill()
    assert mortal.process.wait(EXIT_SECONDS) == 1, mortal.log.read_text()
    assert [event["error"]["code"] for event in stream.events if "error" in event] == ["engine_dead"]
    assert stream.lines[-1] != "data: [DONE]"
    assert "aerie: error: the engine died" in mortal.log.read_text().splitlines()
    assert mortal.left() == []
