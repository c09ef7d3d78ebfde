# SPDX-License-Identifier: Apache-2.0
import random
import string

import httpx
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse

from aerie.server.app import create_app
from aerie.server.house import House
from aerie.server.metrics import Metrics
from aerie.server.progress import Step
from aerie.server.settings import ServeSettings

METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "ACL", "BREW", "X" * 50)
REQUESTS = 300


def series(page: str) -> dict[str, float]:
    """Every series of ours and its value."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("aerie:") and not sample.name.endswith("_created")
    }


def value(page: str, name: str, **labels: str) -> float:
    return series(page)[f"{name}{sorted(labels.items())}"]


async def test_no_request_adds_a_series() -> None:
    house = House(ServeSettings(), positions=2)
    house.readiness.open(PlainTextResponse("answer"), lambda: False)
    rng = random.Random(0)
    transport = httpx.ASGITransport(create_app(ServeSettings(), house))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        before = series((await http.get("/metrics")).text)
        for _ in range(REQUESTS):
            path = "/" + "".join(rng.choices(string.ascii_letters + "/.-", k=rng.randrange(1, 30)))
            body = {"model": rng.choice(string.ascii_letters), "messages": []}
            await http.request(rng.choice(METHODS), rng.choice((path, "/v1/chat/completions")), json=body)
        page = (await http.get("/metrics")).text
    after = series(page)
    assert after.keys() == before.keys()
    counted = sum(count for name, count in after.items() if name.startswith("aerie:http_requests_total"))
    assert counted == REQUESTS + 1
    assert value(page, "aerie:http_requests_total", route="other", status="4xx") > 0


async def test_a_refusal_is_counted_by_its_reason() -> None:
    house = House(ServeSettings())
    transport = httpx.ASGITransport(create_app(ServeSettings(), house))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        await http.get("/v1/models")
        await http.get("/v1/models", headers={"X-Request-Timeout": "never"})
        page = (await http.get("/metrics")).text
    assert value(page, "aerie:rejected_requests_total", reason="not_ready") == 1
    assert value(page, "aerie:rejected_requests_total", reason="invalid_header") == 1
    assert value(page, "aerie:http_requests_total", route="/v1/models", status="5xx") == 1


def test_steps_and_answers_are_counted() -> None:
    metrics = Metrics(3)
    metrics.stepped(Step(drafts=2, drafted=(2, 2, 1), accepted=(2, 1, 0), queued_seconds=(0.2,)), 3)
    metrics.accepted([1, 0, 2, 1])  # four steps, seven accepted: 2.75 tokens a step
    metrics.accepted([0, 0, 0, 0])
    metrics.answered("/v1/models", 429, 0.1, None)
    metrics.answered("/v1/models", None, 0.1, "a word of nobody's")
    page = metrics.page().decode()
    assert value(page, "aerie:drafted_tokens_total", position="2") == 1
    assert value(page, "aerie:accepted_tokens_total", position="0") == 2
    assert value(page, "aerie:draft_length") == 3
    assert value(page, "aerie:acceptance_length_count") == 1
    assert value(page, "aerie:acceptance_length_bucket", le="2.5") == 0
    assert value(page, "aerie:acceptance_length_bucket", le="3.0") == 1
    assert value(page, "aerie:queue_wait_seconds_count") == 1
    assert value(page, "aerie:rejected_requests_total", reason="rate_limited") == 1
    assert value(page, "aerie:rejected_requests_total", reason="other") == 1
    assert value(page, "aerie:http_requests_total", route="/v1/models", status="none") == 1


def test_the_process_is_on_the_page_too() -> None:
    assert "process_open_fds" in Metrics(0).page().decode()
