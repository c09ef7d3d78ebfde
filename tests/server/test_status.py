# SPDX-License-Identifier: Apache-2.0
import httpx
import pytest

from aerie.server.app import create_app
from aerie.server.house import House
from aerie.server.progress import Step
from aerie.server.settings import ServeSettings
from aerie.server.status import Status

K = 3
SETTINGS = ServeSettings(max_queued_requests=5)


async def told(house: House) -> Status:
    transport = httpx.ASGITransport(create_app(SETTINGS, house))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return Status.model_validate_json((await http.get("/aerie/status")).content)


async def test_before_anything_is_loaded_it_says_so() -> None:
    status = await told(House(SETTINGS, positions=K))
    assert (status.status, status.stage, status.draft_tokens) == ("loading", "starting", K)
    assert status.acceptance.mean_acceptance_length is None
    assert status.kernels == []
    assert status.versions["aerie"]


async def test_it_tells_what_the_last_steps_told() -> None:
    house = House(SETTINGS, positions=K)
    house.telemetry.stepped(Step(running=4, waiting=2, kv_usage=0.5, drafts=4, drafted=(4, 4, 0), accepted=(3, 1, 0)))
    status = await told(house)
    assert (status.queue.running, status.queue.waiting, status.kv_cache_usage) == (4, 2, 0.5)
    assert status.draft_tokens == 2
    assert status.acceptance.mean_acceptance_length == pytest.approx(2.0)
    assert status.acceptance.acceptance_rate == pytest.approx(0.5)
