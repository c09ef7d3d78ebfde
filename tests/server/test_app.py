# SPDX-License-Identifier: Apache-2.0
import httpx
import pytest
from starlette.responses import PlainTextResponse

from aerie.server.app import create_app
from aerie.server.house import House
from aerie.server.readiness import Readiness, Stage
from aerie.server.settings import ServeSettings

ROUTES = [("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/docs")]


def client(readiness: Readiness) -> httpx.AsyncClient:
    house = House(ServeSettings())
    house.readiness = readiness
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(ServeSettings(), house)), base_url="http://localhost"
    )


def opened(*, dead: bool = False, stalled: str | None = None) -> Readiness:
    readiness = Readiness()
    readiness.open(PlainTextResponse("from the engine"), lambda: dead, lambda: stalled)
    return readiness


async def test_while_loading_probes_answer_and_tell_the_stage() -> None:
    readiness = Readiness()
    readiness.advance(Stage.LOADING)
    async with client(readiness) as http:
        live, ready, health = [await http.get(path) for path in ("/livez", "/readyz", "/health")]

    assert live.status_code == 200
    assert ready.status_code == health.status_code == 503
    assert ready.json()["status"] == "loading"
    assert ready.json()["stage"] == "loading the engine"


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_while_loading_other_routes_answer_an_openai_error(method: str, path: str) -> None:
    async with client(Readiness()) as http:
        answer = await http.request(method, path, json={})

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json() == {
        "error": {
            "message": "The server is not ready: loading (starting).",
            "type": "service_unavailable_error",
            "param": None,
            "code": "not_ready",
        }
    }


async def test_once_open_the_engine_answers_below_our_routes() -> None:
    async with client(opened()) as http:
        ready = await http.get("/readyz")
        assert (await http.get("/livez")).json() == {"status": "alive"}
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        for method, path in ROUTES:
            body: dict[str, str] | None = {} if method == "POST" else None
            assert (await http.request(method, path, json=body)).text == "from the engine"


@pytest.mark.parametrize(("stage", "status"), [(Stage.STOPPING, "stopping"), (Stage.FAILED, "failed")])
async def test_a_server_on_its_way_out_is_not_ready(stage: Stage, status: str) -> None:
    readiness = opened()
    readiness.advance(stage)
    async with client(readiness) as http:
        assert (await http.get("/readyz")).json()["status"] == status
        assert (await http.get("/v1/models")).status_code == 503


async def test_a_dead_engine_is_not_ready_even_before_anybody_noticed() -> None:
    async with client(opened(dead=True)) as http:
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
        assert ready.json()["reason"] == "the engine died"
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/v1/models")).json()["error"]["code"] == "engine_dead"


async def test_an_engine_that_is_restarted_says_so_until_it_is_back() -> None:
    readiness = Readiness(restarts=True)
    readiness.open(PlainTextResponse("from the first"), lambda: True)
    async with client(readiness) as http:
        for stage in (None, Stage.RESTARTING, Stage.LOADING):
            if stage is not None:
                readiness.advance(stage)
            ready, answer = await http.get("/readyz"), await http.get("/v1/models")
            assert (ready.status_code, ready.json()["status"]) == (503, "restarting")
            assert answer.json()["error"]["code"] == "engine_restarting"
            assert int(answer.headers["retry-after"]) > 0
        readiness.open(PlainTextResponse("from the second"), lambda: False)
        assert (await http.get("/v1/models")).text == "from the second"


async def test_an_engine_without_progress_is_not_ready_and_says_why_but_goes_on_answering() -> None:
    async with client(opened(stalled="the engine has made no step for 61 s")) as http:
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "stalled")
        assert ready.json()["reason"] == "the engine has made no step for 61 s"
        assert (await http.get("/v1/models")).text == "from the engine"


async def test_while_stopping_a_refusal_closes_the_connection() -> None:
    readiness = opened()
    readiness.advance(Stage.STOPPING)
    async with client(readiness) as http:
        answer = await http.get("/v1/models")
    assert answer.json()["error"]["code"] == "shutting_down"
    assert answer.headers["connection"] == "close"
    assert "retry-after" in answer.headers


async def test_metrics_are_there_from_the_start() -> None:
    async with client(Readiness()) as http:
        page = await http.get("/metrics")
    assert page.status_code == 200
    assert "aerie:ready 0.0" in page.text.splitlines()


def test_stage_seconds_count_from_the_start() -> None:
    now = [0.0]
    readiness = Readiness(clock=lambda: now[0])
    now[0] = 2.0
    readiness.advance(Stage.READY)
    now[0] = 5.0
    assert readiness.seconds == 2.0
    assert readiness.report()["stage_seconds"] == 3.0
