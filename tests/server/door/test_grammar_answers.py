# SPDX-License-Identifier: Apache-2.0
"""Between vLLM's handlers and the engine: grammars are tried in their last form, and whose fault it is is told."""

import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from aerie.server.exchange import Exchange
from aerie.server.grammars.verdict import Kind, Verdict
from aerie.server.observed import ObservedLLM

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
Finish = str | None
Ask = Callable[..., Any]


class Checker:
    """Finds fault with the grammars that it is told."""

    whitespace = False

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.refused: list[str] = []
        self.verdict = Verdict("fine")

    async def check(self, kind: Kind, text: str) -> Verdict:
        self.tried.append(f"{kind}: {text}")
        return self.verdict

    def refuse(self, kind: Kind, text: str) -> None:
        self.refused.append(f"{kind}: {text}")


class Asked(SimpleNamespace):
    """What the engine was given, and what the client got."""

    options: dict[str, Any]
    status: int
    error: dict[str, Any]


@pytest.fixture
def checker() -> Checker:
    return Checker()


@pytest.fixture
def ask(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """`await ask(StructuredOutputsParams(…), finish="error", path=…, **body)`."""

    async def send(
        held: StructuredOutputsParams,
        finish: Finish = "stop",
        path: str = CHAT,
        ended: bool | None = None,
        **body: object,
    ) -> Asked:
        asked = Asked(options={}, status=0, error={})
        sent: list[Message] = []

        async def generate(*_: object, **options: object) -> AsyncIterator[Any]:
            asked.options = options
            yield SimpleNamespace(
                finished=True, outputs=[SimpleNamespace(finish_reason=finish, spec_decode_metrics=None)]
            )

        monkeypatch.setattr(AsyncLLM, "generate", generate)
        monkeypatch.setattr(AsyncLLM, "errored", False)
        engine: Any = ObservedLLM.__new__(ObservedLLM)
        engine.telemetry = SimpleNamespace(began=lambda _: None, ended=lambda _, answered: None)
        engine.grammars = checker

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            params = SamplingParams(structured_outputs=held)
            try:
                async for _ in engine.generate({}, params, "a", reasoning_ended=ended):
                    pass
            except ValueError:
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def collect(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "headers": [], "state": {"body": body}}
        await Exchange(scope, receive, collect, lambda: None).run(app)
        asked.status = sent[0]["status"]
        asked.error = json.loads(sent[1]["body"]).get("error", {})
        return asked

    return send


async def test_what_vllm_made_of_tools_is_tried(ask: Ask, checker: Checker) -> None:
    held = StructuredOutputsParams(json={"required": ["name"]})
    assert (await ask(held, tools=[{}])).status == 200
    assert checker.tried == [f"json: {json.dumps(held.json)}"]
    assert held.json == {
        "required": ["name"], "type": "object", "additionalProperties": True, "properties": {"name": True}
    }  # fmt: skip
    checker.verdict = Verdict("costly")
    refused = await ask(held, tools=[{}])
    assert (refused.status, refused.error["param"], refused.error["code"]) == (400, "tools", "invalid_grammar")
    assert refused.options == {}, "the engine never saw it"


async def test_a_trial_that_was_lost_is_no_fault_of_the_client(ask: Ask, checker: Checker) -> None:
    checker.verdict = Verdict("lost")
    lost = await ask(StructuredOutputsParams(regex="a"), structured_outputs={"regex": "a"})
    assert (lost.status, lost.error["code"]) == (503, "grammar_not_tried")


async def test_a_grammar_that_the_engine_gave_up_is_named_and_not_given_to_it_again(ask: Ask, checker: Checker) -> None:
    held = StructuredOutputsParams(regex="a+")
    stopped = await ask(held, "error", structured_outputs={"regex": "a+"})
    assert (stopped.status, stopped.error["param"]) == (400, "structured_outputs.regex")
    assert checker.refused == ["regex: a+"]


async def test_completions_have_no_reasoning_to_wait_for(ask: Ask) -> None:
    held = StructuredOutputsParams(regex="a")
    assert (await ask(held, path=COMPLETIONS)).options["reasoning_ended"] is True


@pytest.mark.parametrize("ended", [True, False, None])
async def test_a_chat_that_shows_no_reasoning_has_it_all_the_same(ask: Ask, *, ended: bool | None) -> None:
    held = StructuredOutputsParams(regex="a")
    assert (await ask(held, ended=ended)).options["reasoning_ended"] is ended
    hidden = await ask(held, ended=True, include_reasoning=False)
    assert hidden.options["reasoning_ended"] is None, "the engine looks for its end"
