# SPDX-License-Identifier: Apache-2.0
"""The application of `aerie serve` over an echo in the place of vLLM, with the rules of an engine of 100 tokens."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter
from starlette.types import Receive, Scope, Send
from tests.server.door.wire import Serve, served
from xgrammar import TokenizerInfo

from aerie.server.app import create_app
from aerie.server.grammars.verdict import Kind, Verdict
from aerie.server.house import House
from aerie.server.middleware.event_stream import EventStream
from aerie.server.middleware.full_answer import FullAnswer
from aerie.server.middleware.request_rules import RequestRules
from aerie.server.middleware.scrub import Scrub
from aerie.server.occupancy import Capacity
from aerie.server.rules.facts import ALL_ROLES, Facts
from aerie.server.settings import ServeSettings
from aerie.server.shapes import Shape
from aerie.server.vllm_facts import request_items, request_shapes

VOCABULARY, CONTEXT = 100, 512


class TriedHere:
    """Tries grammars over single bytes, in this process."""

    async def check(self, kind: Kind, text: str) -> Verdict:
        """What came of it."""
        from aerie.server.grammars.trial import judge

        return await asyncio.to_thread(
            judge, kind, text, TokenizerInfo([bytes([byte]) for byte in range(256)]), whitespace=False
        )


Application = Callable[[Scope, Receive, Send], Awaitable[None]]
VOCABULARY, CONTEXT = 100, 512


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    arrived = {
        "headers": {name.decode(): value.decode("latin-1") for name, value in scope["headers"]},
        "body": json.loads(body) if body else None,
        "state": {name: value for name, value in scope["state"].items() if isinstance(value, str)},
    }
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(arrived).encode()})


@pytest.fixture
def application() -> Callable[..., Application]:
    """`application(inner, facts=Facts(…), **settings)`: ready, over `inner`, guarded as a loaded engine is."""

    def make(inner: Application = _echo, facts: Facts | None = None, **settings: object) -> Application:
        chosen = ServeSettings.model_validate({"allowed_hosts": "*", **settings})
        house = House(chosen)
        house.occupancy.capacity = Capacity(sequences=16, tokens=1 << 20, longest=CONTEXT)
        app = create_app(chosen, house)
        known = facts or Facts(shapes={}, vocabulary=VOCABULARY, context=CONTEXT, speculative=False)
        grammars = TriedHere() if known.xgrammar else None
        rules = RequestRules(inner, known, chosen, grammars=grammars)
        house.readiness.open(Scrub(EventStream(FullAnswer(rules))), lambda: False)
        return app

    return make


@pytest.fixture
def client(application: Callable[..., Application]) -> Callable[..., httpx.AsyncClient]:
    """A client of `application(…)`; what it raises is an answer, as behind uvicorn."""

    def make(*arguments: object, **settings: object) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(application(*arguments, **settings), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    return make


@pytest.fixture
def told() -> Callable[[httpx.Response], dict[str, Any]]:
    """The error of an answer, checked to have exactly OpenAI's fields; Anthropic's are told by the same names."""

    def read(answer: httpx.Response) -> dict[str, Any]:
        body: dict[str, Any] = answer.json()
        if body.pop("type", None) == "error":
            details = body["error"].pop("details", {})
            body["error"] |= {"param": details.get("param"), "code": details.get("error_code")}
        assert list(body) == ["error"]
        error: dict[str, Any] = body["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    return read


@pytest.fixture(scope="session")
def shapes() -> dict[str, Shape]:
    """The fields of vLLM's own request models; imports vLLM."""
    return request_shapes()


@pytest.fixture(scope="session")
def items() -> dict[str, dict[str, TypeAdapter[object]]]:
    """What the entries of lists in a body are validated with; imports vLLM."""
    return request_items()


@pytest.fixture
def facts(shapes: dict[str, Shape], items: dict[str, dict[str, TypeAdapter[object]]]) -> Callable[..., Facts]:
    """`facts(speculative=True)`: a small engine with the fields of vLLM."""

    def make(*, speculative: bool = False, roles: frozenset[str] = ALL_ROLES) -> Facts:
        tokens = ("<|im_start|>", "<|im_end|>")
        return Facts(shapes, VOCABULARY, CONTEXT, speculative, control_tokens=tokens, roles=roles, items=items)

    return make


@pytest.fixture
def serve(make_checkpoint: Callable[..., Path]) -> Serve:
    """`async with serve(max_connections=2) as port:` an engine that says hi, behind the front door."""
    return partial(served, make_checkpoint())
