# SPDX-License-Identifier: Apache-2.0
"""The official clients of OpenAI and Anthropic, unmodified, against one server with keys, tools and a reasoning parser.

Each test runs with the synchronous and with the asynchronous client. The last one sends a thousand requests of all
kinds at once.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import anthropic
import openai
import pytest
from pydantic import BaseModel
from tests.engine import other_clients
from tests.engine.answers import (
    CHECKS,
    MANY_TOKENS,
    MODEL,
    THINKING,
    TOKENS,
    TURN,
    YES_OR_NO,
    Either,
    got,
    has_no_statistics,
    items,
)
from tests.engine.matrix import FIELDS, PARAMETERS, TOOLS, ask_all, cases, differing, faults
from tests.engine.speculation import check_statistics

from aerie.draft_models.contract import GateKind
from aerie.server.keys import make_key

if TYPE_CHECKING:
    from tests.engine.conftest import Server

pytestmark = pytest.mark.engine

DRAFT_TOKENS, AT_ONCE = 3, 30
PROMPTS = 42
GREEDY = {"temperature": 0}  # no argument of Anthropic's client any more
ENGINE_OPTIONS = {
    "enable-auto-tool-choice": True,
    "tool-call-parser": "hermes",
    "default-chat-template-kwargs": {"enable_thinking": False},
    "enable-prompt-tokens-details": True,
}


class Triage(BaseModel):
    urgent: bool
    days: int


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    key, line = make_key("alice")
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"{line}\n")
    return key, path


@pytest.fixture(scope="module")
def server(
    start: Callable[..., AbstractContextManager["Server"]],
    tiny_drafts: Mapping[GateKind, Path],
    key: tuple[str, Path],
) -> Iterator["Server"]:
    options = ["--draft", str(tiny_drafts["elementwise"]), "--draft-tokens", str(DRAFT_TOKENS)]
    options += ["--api-key-file", str(key[1]), "--key-concurrency", str(AT_ONCE), "--max-num-seqs", str(AT_ONCE)]
    options += ["--reasoning-parser", "qwen3", "--engine-options", json.dumps(ENGINE_OPTIONS)]
    with start(*options) as started:
        started.wait_for(lambda state: state["status"] == "ready")
        yield started
        assert started.process.poll() is None, started.log.read_text()
        assert "Traceback" not in started.log.read_text()


@pytest.fixture(params=[openai.OpenAI, openai.AsyncOpenAI], ids=["sync", "async"])
async def gpt(request: pytest.FixtureRequest, server: "Server", key: tuple[str, Path]) -> AsyncIterator[Any]:
    client = request.param(base_url=f"{server.address}/v1", api_key=key[0], max_retries=0)
    yield client
    await got(client.close())


@pytest.fixture(params=[anthropic.Anthropic, anthropic.AsyncAnthropic], ids=["sync", "async"])
async def claude(request: pytest.FixtureRequest, server: "Server", key: tuple[str, Path]) -> AsyncIterator[Any]:
    client = request.param(base_url=server.address, api_key=key[0], max_retries=0)
    yield client
    await got(client.close())


async def test_models_tokens_and_version(gpt: Either) -> None:
    (listed,) = (await got(gpt.models.list())).data
    assert await got(gpt.models.retrieve(MODEL)) == listed.model_copy(update={"permission": ANY})
    assert (listed.id, listed.root) == (MODEL, MODEL)
    for name in ("absent", "owner/name", "owner%2Fname"):
        with pytest.raises(openai.NotFoundError) as unknown:
            await got(gpt.get(f"/models/{name}", cast_to=object))
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    root = gpt.with_options(base_url=str(gpt.base_url).removesuffix("v1/"))
    told = await got(root.post("/tokenize", body={"prompt": "A cough"}, cast_to=object))
    assert told["count"] == len(told["tokens"]) == len("A cough")
    text = await got(root.post("/detokenize", body={"tokens": told["tokens"]}, cast_to=object))
    assert text["prompt"] == "A cough"
    assert (await got(root.get("/version", cast_to=object)))["version"]


async def test_chat_whole_and_streamed(gpt: Either) -> None:
    ask = {"model": MODEL, "messages": [TURN], "max_tokens": TOKENS, "temperature": 0}
    whole = await got(gpt.chat.completions.create(**ask))
    chunks = await items(gpt.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].choices == []
    for told in (whole, chunks[-1]):
        check_statistics(told.metrics, whole.usage.completion_tokens, DRAFT_TOKENS)


async def test_completions_whole_and_streamed(gpt: Either) -> None:
    ask = {"model": MODEL, "prompt": "A cough", "max_tokens": TOKENS, "temperature": 0}
    whole = await got(gpt.completions.create(**ask, logprobs=2))
    chunks = await items(gpt.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text != ""
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens
    for told in (whole, chunks[-1]):
        check_statistics(told.metrics, whole.usage.completion_tokens, DRAFT_TOKENS)
    several = await got(gpt.completions.create(**ask | {"prompt": ["A cough", "A fever"]}))
    assert several.choices[0].text == whole.choices[0].text


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_what_holds_of_answers_at_once_and_streamed(
    gpt: Either, check: Callable[[Either], Awaitable[None]]
) -> None:
    await check(gpt)


async def test_sampling_fields(gpt: Either) -> None:
    async def ask(**fields: object) -> Either:
        asked: Either = {"model": MODEL, "messages": [TURN], "max_tokens": TOKENS} | fields
        return await got(gpt.chat.completions.create(**asked))

    greedy = await ask(temperature=0, logprobs=True, top_logprobs=3)
    logprobs = greedy.choices[0].logprobs.content
    assert len(logprobs) == greedy.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 3 for entry in logprobs)
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in logprobs)
    text = greedy.choices[0].message.content
    stopped = await ask(temperature=0, stop=[text[4:6]])
    assert stopped.choices[0].message.content == text[: text.index(text[4:6])]
    assert stopped.choices[0].finish_reason == "stop"
    one, other = [await ask(seed=7, temperature=1) for _ in range(2)]
    assert one.choices[0].message.content == other.choices[0].message.content
    several = await ask(n=3, temperature=1)
    assert sorted(choice.index for choice in several.choices) == [0, 1, 2]
    assert has_no_statistics(several)
    penalised = await ask(presence_penalty=1, frequency_penalty=1, temperature=0)
    check_statistics(penalised.metrics, TOKENS, DRAFT_TOKENS)
    plain = await ask(extra_body={"vllm_xargs": {"speculation": "off"}})
    assert plain.metrics["speculative_decoding"]["num_draft_tokens"] == 0


async def test_structured_answers_and_tools(gpt: Either) -> None:
    ask = {"model": MODEL, "messages": [TURN], "max_tokens": MANY_TOKENS, "temperature": 1, "seed": 1}
    parsed = (await got(gpt.chat.completions.parse(**ask, response_format=Triage))).choices[0].message.parsed
    assert isinstance(parsed, Triage)
    loose = [{**tool, "function": {**tool["function"], "strict": None}} for tool in TOOLS]
    calling = {"tools": loose, "tool_choice": "required"}
    completion = await got(gpt.chat.completions.create(**ask, **calling, parallel_tool_calls=False))
    (call,) = completion.choices[0].message.tool_calls
    assert call.function.name in PARAMETERS
    assert set(json.loads(call.function.arguments)) >= set(PARAMETERS[call.function.name]["required"])
    assert completion.choices[0].finish_reason == "tool_calls"
    completion = await got(gpt.completions.create(model=MODEL, prompt="A cough", max_tokens=9, extra_body=YES_OR_NO))
    assert completion.choices[0].text in {"yes", "no"}, "there is no thinking to wait for"


async def test_thinking_is_told_apart(gpt: Either) -> None:
    ask = THINKING | {"model": MODEL, "max_tokens": TOKENS, "temperature": 0}
    message = (await got(gpt.chat.completions.create(**ask))).choices[0].message
    assert message.reasoning
    assert message.content
    assert "think>" not in message.reasoning + message.content
    chunks = await items(gpt.chat.completions.create(**ask, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == message.reasoning
    assert "".join(delta.content or "" for delta in deltas) == message.content


async def test_errors_are_the_client_s_own(gpt: Either) -> None:
    ask = {"model": MODEL, "messages": [TURN], "max_tokens": TOKENS}
    with pytest.raises(openai.BadRequestError) as refused:
        await got(gpt.chat.completions.create(**ask, extra_body={"max_tokns": 1}))
    assert (refused.value.param, refused.value.code) == ("max_tokns", "unknown_parameter")
    with pytest.raises(openai.BadRequestError) as refused:
        await got(gpt.responses.create(model=MODEL, input="x", temperature=3))
    assert (refused.value.param, refused.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        await got(gpt.chat.completions.create(**ask | {"model": "absent"}))
    with pytest.raises(openai.AuthenticationError) as unknown:
        await got(gpt.with_options(api_key="wrong").models.list())
    assert unknown.value.code == "invalid_api_key"
    hurry = {"extra_headers": {"X-Request-Timeout": "0.001"}}
    with pytest.raises(openai.InternalServerError) as late:
        await got(gpt.chat.completions.create(**ask, **hurry))
    assert (late.value.status_code, late.value.code) == (504, "request_timeout")


@pytest.mark.skipif(not other_clients.INSTALLED.exists(), reason="`make clients` installs them")
@pytest.mark.parametrize("script", other_clients.SCRIPTS)
def test_clients_of_other_makers(server: "Server", key: tuple[str, Path], script: str, tmp_path: Path) -> None:
    done = other_clients.run(script, tmp_path, server.address, key[0], MODEL)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_more_requests_than_a_key_may_have(server: "Server", key: tuple[str, Path]) -> None:
    ask: Any = {"model": MODEL, "messages": [TURN], "max_tokens": MANY_TOKENS}
    async with (
        openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key=key[0], max_retries=0) as gpt,
        anthropic.AsyncAnthropic(base_url=server.address, api_key=key[0], max_retries=0) as claude,
    ):
        asked = [gpt.chat.completions.create(**ask, extra_body={"ignore_eos": True}) for _ in range(AT_ONCE)]
        asked += [claude.messages.create(**ask) for _ in range(AT_ONCE)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
    kinds = {type(answer) for answer in answers}
    assert kinds & {openai.RateLimitError, anthropic.RateLimitError}
    assert not any(
        isinstance(answer, (openai.InternalServerError, anthropic.InternalServerError)) for answer in answers
    )


async def test_anthropic_s_messages(claude: Either) -> None:
    ask = {"model": MODEL, "messages": [TURN], "max_tokens": TOKENS, "extra_body": GREEDY}
    whole = await got(claude.messages.create(**ask, system="Be short."))
    (block,) = whole.content
    assert (block.type, whole.role, whole.stop_reason) == ("text", "assistant", "max_tokens")
    assert whole.usage.output_tokens == TOKENS
    events = await items(claude.messages.create(**ask, system="Be short.", stream=True))
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == block.text != ""
    stopped = await got(claude.messages.create(**ask, system="Be short.", stop_sequences=[block.text[4:6]]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", block.text[4:6])
    counted = await got(claude.messages.count_tokens(model=MODEL, messages=[TURN], system="Be short."))
    assert counted.input_tokens == whole.usage.input_tokens


async def test_anthropic_s_stream_helper_and_tools(claude: Either) -> None:
    ask = {"model": MODEL, "messages": [TURN], "max_tokens": MANY_TOKENS}
    manager = claude.messages.stream(**ask | {"max_tokens": TOKENS}, extra_body=GREEDY)
    stream = await manager.__aenter__() if hasattr(manager, "__aenter__") else manager.__enter__()
    text = "".join(await items(stream.text_stream))
    assert (await got(stream.get_final_message())).content[0].text == text != ""
    await got(stream.close())
    tools = [{"name": "ask", "strict": True, "input_schema": PARAMETERS["ask"]}]
    message = await got(claude.messages.create(**ask, tools=tools, tool_choice={"type": "tool", "name": "ask"}))
    assert [(block.type, block.name) for block in message.content] == [("tool_use", "ask")]
    assert set(message.content[0].input) >= {"of"}


async def test_anthropic_s_errors_are_the_client_s_own(claude: Either) -> None:
    ask = {"model": MODEL, "messages": [TURN], "max_tokens": TOKENS}
    with pytest.raises(anthropic.BadRequestError):
        await got(claude.messages.create(**ask, extra_body={"temperature": 3}))
    with pytest.raises(anthropic.NotFoundError):
        await got(claude.messages.create(**ask | {"model": "absent"}))
    with pytest.raises(anthropic.AuthenticationError):
        await got(claude.with_options(api_key="wrong").messages.create(**ask))
    with pytest.raises(anthropic.InternalServerError) as late:
        await got(claude.messages.create(**ask, extra_headers={"X-Request-Timeout": "0.001"}))
    assert late.value.status_code == 504


async def test_a_thousand_requests_of_all_kinds(server: "Server", key: tuple[str, Path]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key=key[0], max_retries=0, timeout=600) as gpt:
        answers = await ask_all(gpt, cases(PROMPTS), AT_ONCE, MODEL)
        # A near tie may fall either way in other company.
        alone = await ask_all(gpt, differing(answers), 1, MODEL)
    assert len(answers) >= 1000
    assert faults(answers) == []
    assert differing(alone) == []
    assert len(alone) < len(answers) / 100
    ends = Counter((case.kind, answer.finish == "length") for case, answer in answers.items() if case.kind != "plain")
    assert len(ends) == 2 * len(FIELDS) - 2, f"of every kind, some must be finished and some cut: {ends}"
    assert server.get("/readyz").json()["status"] == "ready"
