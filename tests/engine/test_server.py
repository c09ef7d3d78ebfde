# SPDX-License-Identifier: Apache-2.0
"""`aerie serve` as a process of its own over a tiny target and its gated head, used by the official client."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

from aerie.draft_models.contract import GateKind

pytestmark = pytest.mark.engine

AERIE = (sys.executable, "-P", "-m", "aerie")
DRAFT_TOKENS = 3
TOKENS = 24
READY_SECONDS = 900  # a loaded machine; an idle one with two cores takes less than 90
EXIT_SECONDS = 60
LEAVING_SECONDS = 5
MESSAGES: list[Any] = [{"role": "user", "content": "I have had a cough for three days."}]


@dataclass(frozen=True)
class Server:
    """A running `aerie serve`, the leader of its own session."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=30, trust_env=False)

    def wait_for(self, reached: Callable[[Mapping[str, Any]], bool]) -> None:
        """Until `reached` holds for the body of /readyz."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if reached(self.get("/readyz").json()):
                    return
            time.sleep(0.05)
        pytest.fail(self.log.read_text())

    def processes(self) -> list[int]:
        """Every living process of the session, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter(["status"]):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def left(self) -> list[int]:
        """What is left of the session once it had time to go: helpers of `multiprocessing` outlive us by moments."""
        deadline = time.monotonic() + LEAVING_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to every process in the foreground."""
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def start(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Server]]:
    """`with start("--no-draft") as server:` a process on a free port, killed when the block ends."""

    @contextmanager
    def starting(*arguments: str) -> Iterator[Server]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        log = tmp_path_factory.mktemp("server") / "log"
        command = [*AERIE, "serve", "--model", str(tiny_target), "--port", str(port), "--kv-cache-memory", "64MiB"]
        environ = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments],
                stdout=output,
                stderr=output,
                env=environ,
                cwd=log.parent,
                start_new_session=True,
            )
        server = Server(process, f"http://127.0.0.1:{port}", log)
        try:
            yield server
        finally:
            for pid in server.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    return starting


@pytest.fixture(scope="module")
def server(
    start: Callable[..., AbstractContextManager[Server]], tiny_drafts: Mapping[GateKind, Path]
) -> Iterator[Server]:
    """One server for the tests below; the last of them stops it."""
    with start("--draft", str(tiny_drafts["elementwise"]), "--draft-tokens", str(DRAFT_TOKENS)) as started:
        started.wait_for(lambda state: state["status"] == "ready")
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0)


def check_statistics(metrics: Mapping[str, Any], tokens: int) -> None:
    """The identities that hold for the statistics of one answer."""
    told = metrics["speculative_decoding"]
    histogram = told["acceptance_histogram"]
    assert told["num_spec_tokens"] == DRAFT_TOKENS == len(histogram) - 1
    assert sum(histogram) == told["num_spec_steps"] > 0
    assert sum(i * count for i, count in enumerate(histogram)) == told["num_accepted_draft_tokens"] > 0
    assert told["num_draft_tokens"] <= DRAFT_TOKENS * told["num_spec_steps"]
    assert told["mean_acceptance_length"] == pytest.approx(
        1 + told["num_accepted_draft_tokens"] / told["num_spec_steps"]
    )
    # The first token comes from the prompt; the last step may overshoot the limit.
    yielded = told["num_spec_steps"] + told["num_accepted_draft_tokens"]
    assert tokens - 1 <= yielded <= tokens + DRAFT_TOKENS


def test_the_model_is_listed(client: openai.OpenAI, tiny_target: Path) -> None:
    assert [model.id for model in client.models.list()] == [tiny_target.name]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="target", messages=MESSAGES, max_tokens=TOKENS, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.model_extra is not None
    check_statistics(answer.model_extra["metrics"], answer.usage.completion_tokens)


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="target", prompt="A cough", max_tokens=TOKENS, temperature=0)
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.model_extra is not None
    check_statistics(answer.model_extra["metrics"], answer.usage.completion_tokens)


def test_a_stream_ends_with_usage_and_statistics(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="target", messages=MESSAGES, max_tokens=TOKENS, temperature=0)
    chunks = list(
        client.chat.completions.create(model="target", messages=MESSAGES, max_tokens=TOKENS, temperature=0, stream=True)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    last = chunks[-1]
    assert last.usage == whole.usage
    assert last.model_extra is not None
    check_statistics(last.model_extra["metrics"], TOKENS)


def test_a_streamed_completion_ends_with_usage_and_statistics(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="target", prompt="A cough", max_tokens=TOKENS, stream=True))
    last = chunks[-1]
    assert last.usage is not None
    assert last.model_extra is not None
    check_statistics(last.model_extra["metrics"], last.usage.completion_tokens)


def test_mistakes_are_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="absent", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="target", messages=MESSAGES, max_tokens=-1)


def test_metrics_count_the_speculation(server: Server, client: openai.OpenAI) -> None:
    client.completions.create(model="target", prompt="A cough", max_tokens=TOKENS)
    lines = server.get("/metrics").text.splitlines()
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos"):
        values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"vllm:spec_decode_{name}_total")]
        assert sum(map(float, values)) > 0, name


def test_ctrl_c_ends_it_with_status_0_and_no_process_left(server: Server) -> None:
    # Keep it the last test that uses `server`.
    assert server.get("/readyz").status_code == 200
    server.interrupt()
    assert server.process.wait(EXIT_SECONDS) == 0, server.log.read_text()
    assert server.left() == []
    assert "Traceback" not in server.log.read_text()


def test_ctrl_c_while_loading(start: Callable[..., AbstractContextManager[Server]]) -> None:
    with start("--no-draft") as server:
        server.wait_for(lambda state: state["stage"] == "loading the engine")
        assert server.get("/livez").status_code == 200
        server.interrupt()
        assert server.process.wait(EXIT_SECONDS) == 0, server.log.read_text()
        assert server.left() == []
        assert "Traceback" not in server.log.read_text()


def test_the_death_of_the_engine_ends_the_process(start: Callable[..., AbstractContextManager[Server]]) -> None:
    with start("--no-draft") as server:
        server.wait_for(lambda state: state["status"] == "ready")
        core = max(psutil.Process(server.process.pid).children(), key=lambda child: child.memory_info().rss)
        core.kill()
        assert server.process.wait(EXIT_SECONDS) == 1, server.log.read_text()
        assert "aerie: error: the engine died" in server.log.read_text().splitlines()
        assert server.left() == []
