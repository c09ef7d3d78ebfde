# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are only a config.json and an empty safetensors file, and an engine that is only an application."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy
import pytest
from safetensors.numpy import save_file
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from aerie.server import checks
from aerie.server.occupancy import Capacity
from aerie.server.plan import Plan, make_plan
from aerie.server.readiness import Stage
from aerie.server.run import serve
from aerie.server.settings import ServeSettings
from aerie.server.telemetry import Telemetry

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from aerie.server.settings import fields, variable

    for name in [*map(variable, fields()), "AERIE_CONFIG", "AERIE_HOME", "AERIE_DRAFT_KERNELS"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AERIE_TUNING", str(tmp_path / "tunings"))


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """`make_checkpoint("main", vocab_size=7)` writes the folder `main` with that change to a small Qwen3 config."""

    def make(name: str = "main", chat_template: str | None = None, **changes: Any) -> Path:  # noqa: ANN401 - JSON values
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**QWEN3, **changes}))
        save_file({"empty": numpy.zeros(1)}, folder / "model.safetensors")
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template)
        return folder

    return make


class FakeEngine:
    """An engine whose application is given; it answers every request with a word otherwise."""

    capacity = Capacity(sequences=4, tokens=1000, longest=100)
    kernels: ClassVar[list[str]] = []

    def __init__(self, application: ASGIApp | None = None) -> None:
        self.application = application or PlainTextResponse("answer")
        self.errored = False
        self.is_shut_down = False
        self.probes = 0
        self.may_warm = asyncio.Event()
        self.may_warm.set()
        self.warm_ups = 0

    @asynccontextmanager
    async def open_api(self) -> AsyncIterator[ASGIApp]:
        yield self.application

    async def warm_up(self) -> None:
        self.warm_ups += 1
        await self.may_warm.wait()

    async def probe(self) -> None:
        self.probes += 1

    def shut_down(self) -> None:
        self.is_shut_down = True


Advance = Callable[[Stage], None]


class Running:
    """`serve` in a task, and a client for it."""

    def __init__(self, plan: Plan, load: Callable[[Plan, Advance, Telemetry], FakeEngine]) -> None:
        self.listener = checks.listen("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.task = asyncio.create_task(serve(plan, self.listener, load))

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.address, trust_env=False) as http:
            return await http.get(path)

    async def until(self, status: str) -> None:
        while (await self.get("/readyz")).json()["status"] != status:
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """As an operator does, by a signal to this process."""
        os.kill(os.getpid(), signal.SIGTERM)
        await self.task


@pytest.fixture
def plan(make_checkpoint: MakeCheckpoint) -> Plan:
    return make_plan(ServeSettings(model=str(make_checkpoint()), grace_seconds=1))
