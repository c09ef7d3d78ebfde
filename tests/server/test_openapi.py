# SPDX-License-Identifier: Apache-2.0
"""The description of the server, made from one like vLLM's."""

import asyncio
import threading
from typing import Any

import httpx
from starlette.applications import Starlette

from aerie.server.middleware.known_routes import MODEL, ROUTES
from aerie.server.openapi import describe, description_route
from aerie.server.rules.facts import Facts
from aerie.server.settings import ServeSettings

TEXT = {"type": "object", "required": ["type"], "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}
PICTURE = {"type": "object", "properties": {"type": {"const": "image_url"}, "image_url": {"type": "string"}}}
CHAT = "ChatCompletionRequest"


def reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def theirs() -> dict[str, Any]:
    parts = {"type": "array", "items": {"anyOf": [reference("Text"), reference("Picture")]}}
    fields = {
        "model": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "messages": parts,
        "n": {"type": "integer"},
        "prompt_embeds": {"type": "string"},
        "min_p": {"type": "number"},
    }
    request = {"content": {"application/json": {"schema": reference(CHAT)}}}
    chat = {"requestBody": request, "responses": {"200": {"description": "OK"}, "422": {"description": "No"}}}
    schemas = {CHAT: {"type": "object", "properties": fields}, "Text": TEXT, "Picture": PICTURE, "Other": {}}
    named = {"parameters": [{"name": "model", "in": "path", "schema": {"type": "string"}}], "responses": {}}
    paths = {"/v1/chat/completions": {"post": chat}, "/collective_rpc": {"post": chat}, MODEL: {"get": named}}
    return {"openapi": "3.1.0", "paths": paths, "components": {"schemas": schemas}}


def test_it_is_of_what_is_served_and_accepted() -> None:
    facts = Facts(shapes={}, vocabulary=100, context=512, speculative=True)
    told = describe(theirs(), facts, ServeSettings(max_choices=3), ["m"])
    assert set(told["paths"]) <= set(ROUTES)
    assert set(told["paths"]["/v1/chat/completions"]["post"]["responses"]) > {"200", "400", "503"}
    assert "422" not in told["paths"]["/v1/chat/completions"]["post"]["responses"]
    schemas = told["components"]["schemas"]
    assert set(schemas) == {CHAT, "Text", "Error"}
    assert schemas[CHAT]["additionalProperties"] is False
    fields = schemas[CHAT]["properties"]
    assert fields["model"]["enum"] == ["m", None]
    assert told["paths"][MODEL]["get"]["parameters"][0]["schema"] == {"type": "string", "enum": ["m"]}
    assert fields["messages"]["items"]["anyOf"] == [reference("Text")]
    assert (fields["n"]["minimum"], fields["n"]["maximum"]) == (1, 3)
    assert fields["min_p"]["maximum"] < 0.001
    assert "prompt_embeds" not in fields


def test_it_says_which_routes_need_a_key() -> None:
    facts = Facts(shapes={}, vocabulary=100, context=512, speculative=False)
    assert "security" not in describe(theirs(), facts, ServeSettings(), ["m"])
    told = describe(theirs(), facts, ServeSettings(api_key_file="keys"), ["m"])
    assert told["security"] == [{name: []} for name in told["components"]["securitySchemes"]]
    open_ones = {path for path, methods in told["paths"].items() if methods.get("get", {}).get("security") == []}
    assert open_ones == {"/livez", "/readyz", "/health"}


async def test_it_is_made_once_beside_the_event_loop() -> None:
    makers: list[int] = []

    def make() -> dict[str, Any]:
        makers.append(threading.get_ident())
        if len(makers) == 1:
            raise ValueError
        return {"openapi": "3.1.0"}

    application = Starlette(routes=[description_route(make)])
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.get("/openapi.json")).status_code == 500
        answers = await asyncio.gather(*(http.get("/openapi.json") for _ in range(3)))
    assert [answer.json() for answer in answers] == [{"openapi": "3.1.0"}] * 3
    assert len(makers) == 2, "what failed is tried again, what was made is kept"
    assert threading.get_ident() not in makers
