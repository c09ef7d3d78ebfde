# SPDX-License-Identifier: Apache-2.0
"""`aerie serve` as a process of its own over a tiny target and its gated head, used by the official client."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from playwright.sync_api import expect, sync_playwright
from tests.engine.speculation import check_statistics
from typer.testing import CliRunner

from aerie.benchmarks.results_file import ResultFile
from aerie.cli import app
from aerie.draft_models.contract import GateKind
from aerie.server.plan import make_plan
from aerie.server.settings import ServeSettings
from aerie.server.tuning import Tuning

if TYPE_CHECKING:
    from tests.engine.conftest import Server

pytestmark = pytest.mark.engine

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRAFT_TOKENS = 3
NO_USAGE = {"stream_options": {"include_usage": False}}
DECLINED = {"vllm_xargs": {"speculation": "off"}}
SCHEDULE = ((1, 2, DRAFT_TOKENS), (3, 4, 1), (5, 4096, 0))
TOKENS = 24
EXIT_SECONDS = 60
MESSAGES: list[Any] = [{"role": "user", "content": "I have had a cough for three days."}]


@pytest.fixture(scope="module")
def server(
    start: Callable[..., AbstractContextManager["Server"]],
    tiny_target: Path,
    tiny_drafts: Mapping[GateKind, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["Server"]:
    """One server for the tests below, tuned as if drafts paid for few requests only; the last test stops it."""
    draft = str(tiny_drafts["elementwise"])
    setup = make_plan(ServeSettings(model=str(tiny_target), draft=draft, speculation="fixed")).setup
    file = tmp_path_factory.mktemp("tuning") / "tuning.json"
    Tuning(measured=date(2026, 11, 28), setup=setup, schedule=SCHEDULE, predictions=(), provenance={}).write(file)
    with start("--draft", draft, "--speculation", str(file)) as started:
        started.wait_for(lambda state: state["status"] == "ready")
        yield started


@pytest.fixture(scope="module")
def client(server: "Server") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0)


def check(metrics: Mapping[str, Any], tokens: int) -> None:
    check_statistics(metrics, tokens, DRAFT_TOKENS)
    assert metrics["speculative_decoding"]["num_accepted_draft_tokens"] > 0


def test_the_model_is_listed(client: openai.OpenAI, tiny_target: Path) -> None:
    assert [model.id for model in client.models.list()] == [tiny_target.name]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="target", messages=MESSAGES, max_tokens=TOKENS, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.model_extra is not None
    check(answer.model_extra["metrics"], answer.usage.completion_tokens)


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="target", prompt="A cough", max_tokens=TOKENS, temperature=0)
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.model_extra is not None
    check(answer.model_extra["metrics"], answer.usage.completion_tokens)


def test_a_stream_ends_with_usage_and_statistics_where_they_are_asked_for(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "target", "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    asked = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(asked)
    unasked = list(client.chat.completions.create(**ask, stream=True))
    assert all(len(chunk.choices) == 1 for chunk in chunks + unasked)
    for told in (chunks, unasked):
        assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == whole.choices[0].message.content
    assert not any(chunk.usage for chunk in unasked)
    assert last.choices == []
    assert last.usage == whole.usage
    assert last.model_extra is not None
    check(last.model_extra["metrics"], TOKENS)


def test_a_streamed_completion_ends_with_usage_and_statistics_too(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "target", "prompt": "A cough", "max_tokens": TOKENS, "stream": True}
    asked: Any = client.completions.create(**ask, stream_options={"include_usage": True})
    *chunks, last = list(asked)
    chunks += list(client.completions.create(**ask)) + list(client.completions.create(**ask | NO_USAGE))
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert last.usage is not None
    assert last.model_extra is not None
    check(last.model_extra["metrics"], last.usage.completion_tokens)


def test_a_request_can_decline_speculation(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:  # noqa: ANN401 - a chat completion with fields that the client does not know
        return client.chat.completions.create(
            model="target", messages=MESSAGES, max_tokens=TOKENS, temperature=0, extra_body=more
        )

    plain = ask(vllm_xargs={"speculation": "off"})
    drafted = ask()
    assert plain.choices[0].message.content == drafted.choices[0].message.content
    check(drafted.metrics, TOKENS)
    statistics = (getattr(plain, "metrics", None) or {}).get("speculative_decoding") or {}
    assert statistics.get("num_draft_tokens", 0) == 0


def test_k_follows_the_load_and_answers_do_not(server: "Server", client: openai.OpenAI) -> None:
    """Ends of a load go through every K of the schedule, 0 included."""
    told = server.get("/aerie/status").json()
    assert told["draft_schedule"] == [list(one) for one in SCHEDULE]
    assert told["speculation"] == "tuned on 2026-11-28: K = 3 up to 2 requests, 1 up to 4, then 0"

    def ask(prompt: str, tokens: int, speculation: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as above
        return client.completions.create(
            model="target", prompt=prompt, max_tokens=tokens, temperature=0, extra_body=dict(speculation)
        )

    prompts = [(f"Cough number {index}", 2 * TOKENS + 8 * index) for index in range(8)]
    plain = [ask(*one, DECLINED).choices[0].text for one in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        loaded = list(pool.map(lambda one: ask(one[0], one[1], {}), prompts))
    assert [one.choices[0].text for one in loaded] == plain
    statistics = [one.metrics["speculative_decoding"] for one in loaded]
    drafted = sum(one["num_draft_tokens"] for one in statistics)
    assert 0 < drafted < DRAFT_TOKENS * sum(tokens for _, tokens in prompts) // 2


def test_mistakes_are_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="absent", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="target", messages=MESSAGES, max_tokens=-1)


def test_metrics_count_the_speculation(server: "Server", client: openai.OpenAI) -> None:
    client.completions.create(model="target", prompt="A cough", max_tokens=TOKENS)
    lines = server.get("/metrics").text.splitlines()
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos"):
        values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"vllm:spec_decode_{name}_total")]
        assert sum(map(float, values)) > 0, name


def test_bench_serving_measures_a_running_server(server: "Server", tiny_target: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "short.jsonl", tmp_path / "serving.json"
    prompts.write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": str(n)}]}) + "\n" for n in range(9))
    )
    command = ["bench", "serving", "--out", str(out), "--model", str(tiny_target), "--prompts", f"short={prompts}"]
    command += ["--variant", f"none={server.address}", "--variant", f"same={server.address}/v1"]
    command += ["--concurrency", "1", "--count", "2", "--rounds", "1", "--max-tokens", str(TOKENS)]
    command += ["--temperature", "0", "--temperature", "1", "--goodput-ttft-ms", "60000", "--work", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exception is None, done.output
    result = ResultFile.read(out)
    assert len(result.runs) == 2 * 2
    for run in result.runs:
        measured = run.measured
        assert measured["requests"] == 2
        positions = measured["acceptance_positions"]
        assert isinstance(positions, list)
        assert len(positions) == DRAFT_TOKENS
        assert measured["acceptance_length"] == pytest.approx(1 + sum(float(str(share)) for share in positions))
        assert measured["cores_server"] is None
    figures = result.figures
    assert figures["complete"] == figures["identical_same_c1"] == 1
    assert {"speedup_same_c1", "speedup_same_t1_c1", "goodput_per_s_none_t1_c1"} <= set(figures)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_page_shows_both_ways_side_by_side(server: "Server", width: int, scheme: Any, tmp_path: Path) -> None:  # noqa: ANN401
    with sync_playwright() as playwright:
        # As root, such as in a container, Chromium does without its sandbox or not at all.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(request.url))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((server.address, "data:")) else faults.append(asked.url),
        )
        page.goto(server.address)
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#facts")).to_contain_text(f"K{DRAFT_TOKENS}")
        page.fill("#tokens", str(TOKENS))
        page.check("#compare")
        page.focus("#prompt")
        page.keyboard.type("A cough, for three days.")
        page.keyboard.press("Enter")
        expect(page.locator("#without .figures")).to_contain_text(f"{TOKENS} tokens", timeout=60_000)
        expect(page.locator("#send")).to_be_enabled()
        assert page.inner_text("#with .message:last-child") == page.inner_text("#without .message:last-child")
        assert page.locator("#with .token.drafted").count() > 0
        assert page.locator("#without .token.drafted").count() == 0
        assert page.locator("#with .bars progress").count() == DRAFT_TOKENS + 1
        box = page.locator("#send").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert faults == []


def test_ctrl_c_ends_it_with_status_0_and_no_process_left(server: "Server") -> None:
    # Keep it the last test that uses `server`.
    assert server.get("/readyz").status_code == 200
    server.interrupt()
    assert server.process.wait(EXIT_SECONDS) == 0, server.log.read_text()
    assert server.left() == []
    assert "Traceback" not in server.log.read_text()


def test_ctrl_c_while_loading(start: Callable[..., AbstractContextManager["Server"]]) -> None:
    with start("--no-draft") as server:
        server.wait_for(lambda state: state["stage"] == "loading the engine")
        assert server.get("/livez").status_code == 200
        server.interrupt()
        assert server.process.wait(EXIT_SECONDS) == 0, server.log.read_text()
        assert server.left() == []
        assert "Traceback" not in server.log.read_text()
