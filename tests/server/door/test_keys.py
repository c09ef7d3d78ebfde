# SPDX-License-Identifier: Apache-2.0
"""Who gets in."""

import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from aerie.server.errors import BadOption
from aerie.server.keys import KeyFileError, KeyRing, Salts, make_key, read_keys

CHAT = "/v1/chat/completions"
ALICE, BOB = "aerie-alices-key", "aerie-bobs-key"
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]


def line(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# who may ask\n" + line("alice", ALICE) + line("bob", BOB))
    return path


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "NONSENSE"])
@pytest.mark.parametrize(
    "path",
    [
        *(
            "/v1/models",
            CHAT,
            "/metrics",
            "/docs",
            "/tokenize",
            "/aerie/status",
            "/nothing",
            "//v1/models",
            "/v1%2fmodels",
        ),
        *("/V1/models", "/./v1/models", "/livez/", "/livez/../v1/models", "/livez%2f..", "/health?x=/livez/"),
    ],
)
async def test_without_a_key_nothing_answers_but_the_probes(
    client: Client, told: Told, key_file: Path, method: str, path: str
) -> None:
    async with client(api_key_file=str(key_file)) as http:
        answer = await http.request(method, httpx.URL("http://test").copy_with(raw_path=path.encode()))
        if path.startswith("/health?"):
            assert answer.status_code in (200, 405)
            return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    if method != "HEAD":
        assert told(answer)["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/", "/page.css", "/page.js"])
async def test_probes_and_the_page_need_no_key(client: Client, key_file: Path, path: str) -> None:
    async with client(api_key_file=str(key_file)) as http:
        assert (await http.get(path)).status_code == 200


@pytest.mark.parametrize("host", ["a/?x=", "x/#", "livez", "test/livez?"])
async def test_the_host_header_opens_nothing(client: Client, key_file: Path, host: str) -> None:
    async with client(api_key_file=str(key_file)) as http:
        assert (await http.get("/v1/models", headers={"Host": host})).status_code == 401


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"Authorization": f"Bearer {ALICE}"}, "alice"),
        ({"Authorization": f"bearer {BOB}"}, "bob"),
        ({"x-api-key": BOB}, "bob"),
        ({"x-api-key": BOB, "Authorization": f"Bearer {BOB}"}, "bob"),
    ],
)
async def test_a_key_lets_in_and_names_its_holder(
    client: Client, key_file: Path, headers: dict[str, str], name: str
) -> None:
    async with client(api_key_file=str(key_file)) as http:
        arrived = (await http.post(CHAT, json={}, headers=headers)).json()
    assert arrived["state"]["key"] == name
    assert not {"authorization", "x-api-key"} & set(arrived["headers"]), "the key goes no further"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": f"Bearer {ALICE}x"},
        {"Authorization": f"Bearer {ALICE[:-1]}"},
        {"Authorization": f"Bearer {ALICE}, Bearer {BOB}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {ALICE}", "x-api-key": BOB},
        {"x-api-key": hashlib.sha256(ALICE.encode()).hexdigest()},
        {"x-api-key": "ä".encode("latin-1").decode("latin-1")},
    ],
)
async def test_anything_else_does_not(
    client: Client, told: Told, key_file: Path, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    sent = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    async with client(api_key_file=str(key_file)) as http:
        answer = await http.post(CHAT, json={}, headers=sent)
    assert (answer.status_code, told(answer)["code"]) == (401, "invalid_api_key")
    for key in (ALICE, BOB):
        assert key not in answer.text + str(answer.headers) + caplog.text


async def test_a_websocket_is_closed_without_a_key_and_with_one(
    application: Callable[..., Any], key_file: Path
) -> None:
    app = application(api_key_file=str(key_file))
    for headers in ([], [(b"x-api-key", ALICE.encode())]):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:  # noqa: ANN401 - an ASGI message
            sent.append(message)

        async def receive() -> dict[str, str]:
            return {"type": "websocket.connect"}

        scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers, "query_string": b"", "scheme": "ws"}
        await app(scope, receive, send)
        assert [message["type"] for message in sent] == ["websocket.close"]


def test_every_key_is_compared_whatever_matches(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[bytes] = []
    real = hmac.compare_digest

    def counting(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return real(given, known)

    ring = KeyRing(key_file)
    monkeypatch.setattr("aerie.server.keys.hmac.compare_digest", counting)
    for key, name in ((ALICE, "alice"), (BOB, "bob"), ("wrong", None)):
        compared.clear()
        assert ring.name(key) == name
        assert len(compared) == 2


def test_the_file_is_read_again_when_it_changes_and_a_bad_one_changes_nothing(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    ring = KeyRing(key_file, clock=lambda: now[0])

    key_file.write_text(line("bob", BOB))
    assert ring.name(ALICE) == "alice", "looked at once a second only"
    now[0] = 2
    assert (ring.name(ALICE), ring.name(BOB)) == (None, "bob")

    with caplog.at_level(logging.INFO):
        for bad in ("nonsense", "", line("bob", BOB) * 2):
            key_file.write_text(bad)
            now[0] += 2
            assert ring.name(BOB) == "bob"
        key_file.unlink()
        now[0] += 2
        assert ring.name(BOB) == "bob"
    assert caplog.text.count("the API keys stay as they were") == 4
    assert hashlib.sha256(BOB.encode()).hexdigest() not in caplog.text


@pytest.mark.parametrize(
    ("text", "fault"),
    [("alice:abc\n", "line 1"), ("\n# no key\n", "holds no key"), ("a b:" + "0" * 64, "line 1")],
)
def test_a_bad_file_is_refused_without_telling_what_is_in_it(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=fault) as refused:
        read_keys(path)
    assert "abc" not in str(refused.value)


def test_a_file_that_everybody_may_write_is_refused(key_file: Path) -> None:
    key_file.chmod(0o666)
    with pytest.raises(KeyFileError, match="everybody may write"):
        read_keys(key_file)


def test_a_file_refused_for_its_mode_is_read_once_that_is_mended(key_file: Path) -> None:
    now = [0.0]
    ring = KeyRing(key_file, clock=lambda: now[0])
    key_file.write_text(line("carol", "aerie-carols-key"))
    for mode, name in ((0o666, "alice"), (0o600, None)):
        key_file.chmod(mode)
        now[0] += 2
        assert ring.name(ALICE) == name
    assert ring.name("aerie-carols-key") == "carol"


def test_yaml_spacing_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(line("alice", ALICE).replace(":", ": "))
    assert list(read_keys(path)) == ["alice"]


def test_the_command_makes_a_key_and_its_line(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-P", "-m", "aerie", "key", "alice"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    key, kept = made.stdout.split()
    (tmp_path / "keys").write_text(kept)
    assert KeyRing(tmp_path / "keys").name(key) == "alice"
    assert len(key) >= 43
    assert key not in kept + made.stderr


@pytest.mark.parametrize("name", ["", "a b", "a:b", "x" * 65, "ä"])
def test_a_name_that_would_break_a_line_is_refused(name: str) -> None:
    with pytest.raises(BadOption, match="is no name for a key"):
        make_key(name)


def test_salts_differ_by_key_by_choice_and_by_process() -> None:
    salts = Salts()
    assert salts.of("alice", "") == salts.of("alice", "")
    assert len({salts.of("alice", ""), salts.of("bob", ""), salts.of("alice", "x"), Salts().of("alice", "")}) == 4
