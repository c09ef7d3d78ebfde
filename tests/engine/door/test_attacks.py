# SPDX-License-Identifier: Apache-2.0
"""Attacks on the process and its connections, on one client through another, and on every route by its description.

A second engine beside that of `test_front_door.py`, with few connections and short patience.
"""

import json
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from tests.engine.door.conftest import COMPLETIONS, LEAKS, Ask, Keys
from tests.engine.door.fuzz import Fuzzer

from aerie.draft_models.contract import GateKind
from aerie.server.middleware.known_routes import ROUTES
from aerie.server.page import FILES
from aerie.server.routes import LABELS

if TYPE_CHECKING:
    from tests.engine.conftest import Server

pytestmark = pytest.mark.engine

CONTEXT = 512
CONNECTIONS, HEADER_SECONDS, BODY_SECONDS = 64, 5, 10
PATIENCE = 120  # a loaded machine
SOON = 30  # two tokens, on the same machine
LONG: dict[str, Any] = {"prompt": "A cough", "max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(
    start: Callable[..., AbstractContextManager["Server"]], tiny_drafts: Mapping[GateKind, Path], keys: Keys
) -> Iterator["Server"]:
    options = ["--draft", str(tiny_drafts["headwise"]), "--api-key-file", str(keys[2])]
    options += ["--max-connections", str(CONNECTIONS), "--header-seconds", str(HEADER_SECONDS)]
    options += ["--keep-alive-seconds", str(HEADER_SECONDS)]  # also of connections that say nothing at all
    options += ["--body-seconds", str(BODY_SECONDS), "--max-queued-requests", "64", "--grammar-seconds", "1"]
    with start(*options) as started:
        started.wait_for(lambda state: state["status"] == "ready")
        yield started
        log = started.log.read_text()  # with tracebacks: vLLM logs what it refuses in the middle of a stream
        assert started.process.poll() is None, log
        assert not any(key in log for key in keys[:2])


@pytest.fixture(scope="module")
def fuzzer(server: "Server", keys: Keys) -> Fuzzer:
    return Fuzzer(server.address, keys[0])


def connect(server: "Server", sent: bytes = b"") -> socket.socket:
    address = urlsplit(server.address)
    opened = socket.create_connection((str(address.hostname), address.port or 0), timeout=PATIENCE)
    with suppress(OSError):  # refused before all was sent
        opened.sendall(sent)
    return opened


def received(opened: socket.socket) -> bytes:
    """Everything until the server closes the connection; a reset closes it too."""
    told = b""
    with suppress(ConnectionError):
        while chunk := opened.recv(1 << 16):
            told += chunk
    return told


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize("path", [path for path in ROUTES if path not in FILES])
def test_whatever_its_description_allows_and_forbids(fuzzer: Fuzzer, path: str) -> None:
    found = fuzzer.run(path)
    assert found.failures == []
    assert found.statuses.total() > 5
    assert 405 in found.statuses
    if "POST" in ROUTES[path]:
        assert {200, 400} <= set(found.statuses)
    assert [text for text in found.refusals if LEAKS.search(text)] == []


def test_the_description_is_of_what_is_served(fuzzer: Fuzzer) -> None:
    described = fuzzer.schema.raw_schema
    assert set(described["paths"]) == set(ROUTES) - set(FILES)
    fields = described["components"]["schemas"]["CompletionRequest"]["properties"]
    assert "prompt_embeds" not in fields
    assert (fields["n"]["minimum"], fields["n"]["maximum"]) == (1, 8)
    assert described["security"]
    assert described["paths"]["/livez"]["get"]["security"] == []


def test_nothing_listens_to_others_but_the_http_port(server: "Server") -> None:
    port = urlsplit(server.address).port
    listening, local = set(), set()
    for pid in server.processes():
        for found in psutil.Process(pid).net_connections("all"):
            if found.family == socket.AF_UNIX:
                local.add(str(found.laddr))
            elif found.status == psutil.CONN_LISTEN:
                listening.add((found.laddr.ip, found.laddr.port))
    assert ("127.0.0.1", port) in listening
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1"}
    files = [Path(path) for path in local if path.startswith("/")]
    assert files, "vLLM's own sockets are files"
    for path in files:
        folder = path.parent.stat()
        assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o700, server_user(server)), path


def server_user(server: "Server") -> int:
    return int(psutil.Process(server.process.pid).uids().real)


def test_keys_are_in_no_command_line_and_no_environment(server: "Server", keys: Keys) -> None:
    for pid in server.processes():
        process = psutil.Process(pid)
        told = " ".join([*process.cmdline(), *process.environ().values()])
        assert not any(key in told for key in keys[:2])


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: a/?x=\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: livez/#\r\n",
        b"GET //v1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /livez/../v1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /v1%2fmodels HTTP/1.1\r\nHost: a\r\n",
        b"GET /V1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET http://x/v1/models HTTP/1.1\r\nHost: a\r\n",
        b"OPTIONS /v1/models HTTP/1.1\r\nHost: a\r\n",
        b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    ],
)
def test_no_spelling_of_a_request_gets_in_without_a_key(server: "Server", head: bytes) -> None:
    with connect(server, head + b"Connection: close\r\n\r\n") as opened:
        answer = received(opened)
    assert re.match(rb"HTTP/1.1 (400|401|404) ", answer), answer
    assert b"target" not in answer


@pytest.mark.usefixtures("canary")
def test_headers_and_bodies_without_end(ask: Ask, server: "Server", keys: Keys) -> None:
    key = f"x-api-key: {keys[0]}\r\n".encode()
    post = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + key + b"Content-Type: application/json\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    for sent in (
        b"GET / HTTP/1.1\r\nX: " + b"x" * (8 << 20),
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: x\r\n" % number for number in range(100_000)) + b"\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 512,  # 32 MiB, eight times what a body may have
        post + b"Content-Length: 2147483648\r\n\r\n{",
        post + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n",
    ):
        with connect(server, sent) as opened:
            answer = received(opened)
        assert re.fullmatch(rb"|HTTP/1.1 4\d\d .*", answer, re.DOTALL), answer[:300]
        assert answer.count(b"HTTP/1.1") <= 1
    packed = ask(COMPLETIONS, b"\x1f\x8b\x08", **{"Content-Encoding": "gzip"})
    assert packed.status_code == 415, "never unpacked, so no bomb can go off"
    ping = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
    with connect(server, (ping + b"\r\n") * 99 + ping + b"Connection: close\r\n\r\n") as opened:
        assert received(opened).count(b"HTTP/1.1 200") == 100


@pytest.mark.usefixtures("canary")
def test_connections_that_say_nothing_or_little(ask: Ask, server: "Server") -> None:
    began = time.monotonic()
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(server, b"GET / HT"[: number % 9])) for number in range(CONNECTIONS)]
        assert ask(COMPLETIONS, {"prompt": "x", "max_tokens": 1}).status_code == 200, "whoever is in stays in"
        assert all(received(opened) == b"" for opened in idle), "closed without a word"
    assert time.monotonic() - began < PATIENCE
    assert server.get("/livez").status_code == 200


@pytest.mark.usefixtures("canary")
def test_clients_that_never_read_and_clients_that_leave(server: "Server", keys: Keys) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nx-api-key: {keys[0]}\r\nContent-Type: application/json\r\n"
    body = json.dumps({**LONG, "n": 4, "logprobs": 10}).encode()
    sent = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with ExitStack() as stack:
        deaf = [stack.enter_context(connect(server, sent)) for _ in range(4)]
        time.sleep(2)  # whatever they have by now is in buffers
        for opened in deaf[:2]:  # those leave in the middle of a draft's verification
            opened.close()
    deadline = time.monotonic() + PATIENCE
    while server.get("/aerie/status", keys[0]).json()["queue"]["admitted"] > 1:  # the canary's
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.memory_info().rss - before < 256 << 20


@pytest.mark.usefixtures("canary")
def test_every_way_to_sample_beside_every_other_with_and_without_the_draft(ask: Ask) -> None:
    ways: list[dict[str, Any]] = [
        {"presence_penalty": 2},
        {"frequency_penalty": -2},
        {"repetition_penalty": 1.5},
        {"seed": 7, "temperature": 2},
        {"logprobs": 5},
        {"n": 3},
        {"stop": ["e", "\u0000"]},
        {"min_tokens": 8, "ignore_eos": True},
        {"structured_outputs": {"regex": "[a-z]{4,8}"}},
        {"bad_words": ["a"], "allowed_token_ids": [1, 2, 3]},
    ]
    prompts: list[str | list[int]] = [[1], "x" * 50, [1] * (CONTEXT - 8), [1] * (CONTEXT - 1)]  # a token a byte
    bodies = [
        {"prompt": prompt, "max_tokens": min(8, CONTEXT - len(prompt)), "stream": stream,
         "vllm_xargs": extensions, **way}
        for way in ways
        for prompt in prompts
        for stream, extensions in ((False, {}), (True, {"speculation": "off"}))
    ]  # fmt: skip
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: ask(COMPLETIONS, body), bodies))
    for body, answer in zip(bodies, answers, strict=True):
        length, least = int(str(body["max_tokens"])), int(str(body.get("min_tokens", 0)))
        assert answer.status_code == (200 if length >= least else 400), (body, answer.text)
        assert '"error"' not in answer.text or answer.status_code == 400, (body, answer.text)


@pytest.mark.usefixtures("canary")
def test_grammars_without_end_hold_up_nobody(ask: Ask, keys: Keys) -> None:
    ambiguous = "([^x]{0,10}x?){0,100}"
    endless = {"type": "structural_tag", "format": {"type": "grammar", "grammar": "root ::= root"}}
    refused: list[dict[str, Any]] = [
        *({"json": {"type": "string", "pattern": f"^{ambiguous}$", "title": str(number)}} for number in range(4)),
        {"grammar": 'root ::= ([^x]{0,100} "x"?){0,1000}'},
        {"grammar": 'root ::= "a"{1,1000000000}'},
        {"structural_tag": json.dumps(endless)},
    ]
    # With few tokens it is matched quickly, and need not be refused.
    attacks = [*refused, *({"regex": f"{'a' * number}{ambiguous}"} for number in range(4))]
    body: dict[str, Any] = {"prompt": "A cough", "max_tokens": 400, "ignore_eos": True}
    with ThreadPoolExecutor(len(attacks)) as pool:
        answers = [pool.submit(ask, COMPLETIONS, {**body, "structured_outputs": attack}) for attack in attacks]
        for number in range(4):
            began = time.monotonic()
            held = {"regex": f"[a-z]{{1,{9 + number}}}"} if number % 2 else None
            answer = ask(COMPLETIONS, {"prompt": "x", "max_tokens": 2, "structured_outputs": held}, keys[1])
            assert answer.status_code == 200
            assert time.monotonic() - began < SOON
        errors = [answer.result().json().get("error") for answer in answers]
    for attack, error in zip(refused, errors, strict=False):
        assert error["param"] == f"structured_outputs.{next(iter(attack))}"
    assert all(error is None or error["code"] == "invalid_grammar" for error in errors[len(refused) :])


@pytest.mark.usefixtures("canary")
def test_no_secret_reaches_another_client(ask: Ask, server: "Server", keys: Keys) -> None:
    secret = [secrets.token_hex(8) for _ in range(32)]

    def tell(number: int) -> str:
        prompt = f"My name is {secret[number]}. " * 6
        body = {"prompt": prompt, "max_tokens": 48, "echo": True, "ignore_eos": True, "temperature": number % 2}
        if number % 4 == 3:  # leaves while its answer is made
            headers = {"x-api-key": (keys[0], keys[1])[number % 2]}
            with (
                suppress(httpx.ReadTimeout),
                httpx.stream(
                    "POST", server.address + COMPLETIONS, json={**body, "stream": True}, headers=headers,
                    timeout=httpx.Timeout(PATIENCE, read=0.2), trust_env=False,
                ) as answer,
            ):  # fmt: skip
                return next(answer.iter_text(), "")
            return ""
        return ask(COMPLETIONS, body, str(keys[number % 2])).text

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(tell, range(len(secret))))
    for number, text in enumerate(told):
        assert {name for name in secret if name in text} <= {secret[number]}
    assert sum(secret[number] in text for number, text in enumerate(told)) >= 24, "what would be found is found"


def test_labels_are_a_closed_set_after_all_of_this(server: "Server", keys: Keys) -> None:
    told = server.get("/metrics", keys[0]).text
    paths = set(re.findall(r'(?:path|handler|route)="([^"]*)"', told))
    assert paths
    assert paths <= set(LABELS)
    assert set(re.findall(r'method="([^"]*)"', told)) <= {"GET", "POST", "HEAD", "other"}
    assert set(re.findall(r'model_name="([^"]*)"', told)) == {"target"}
