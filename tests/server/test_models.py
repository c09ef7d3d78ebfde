# SPDX-License-Identifier: Apache-2.0
"""The model and its adapters, over a registry like vLLM's."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from aerie.server.models import model_routes

SECRET = "/models/secret/adapter"
CARDS: dict[str, dict[str, Any]] = {
    "owner/name": {"root": SECRET, "parent": None},
    "adapter": {"root": SECRET, "parent": "owner/name"},
}


class Registry:
    """Its cards are made when it is asked, with another time each."""

    time = 0

    async def show_available_models(self) -> Any:  # noqa: ANN401 - a list of vLLM's cards
        self.time += 1
        told = {name: {"id": name, "object": "model", "created": self.time, **card} for name, card in CARDS.items()}
        return SimpleNamespace(data=[SimpleNamespace(id=name, model_dump=card.copy) for name, card in told.items()])


async def get(path: str) -> httpx.Response:
    app = FastAPI()
    app.router.routes[:0] = model_routes(Registry()).routes  # type: ignore[arg-type]  # a fake
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        return await http.get(path)


async def test_no_model_tells_where_it_lies() -> None:
    answer = await get("/v1/models")
    assert [(card["id"], card["root"], card["parent"]) for card in answer.json()["data"]] == [
        ("owner/name", "owner/name", None),
        ("adapter", "adapter", "owner/name"),
    ]
    assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["owner/name", "owner%2Fname", "owner%2fname"])
async def test_a_model_is_told_by_its_name(path: str) -> None:
    card = (await get(f"/v1/models/{path}")).json()
    (listed, _) = (await get("/v1/models")).json()["data"]
    assert card == listed | {"created": card["created"]}
    assert card["created"] > Registry.time + 1_000_000, "when the server began, whoever asks"


@pytest.mark.parametrize("path", ["absent", "owner", "owner/name/", "owner%2520name", "%22", "a" * 1000])
async def test_another_is_not_found(path: str) -> None:
    answer = await get(f"/v1/models/{path}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["type"] == "invalid_request_error"
