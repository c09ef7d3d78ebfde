# SPDX-License-Identifier: Apache-2.0
"""Which routes there are, how requests are named, and what errors tell."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from aerie.server.keys import make_key

CHAT = "/v1/chat/completions"
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        *("/collective_rpc", "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/reset_prefix_cache"),
        *("/scale_elastic_ep", "/is_scaling_elastic_ep", "/load", "/server_info", "/v1/load_lora_adapter"),
        *("/v1/unload_lora_adapter", "/inference/v1/generate", "/start_profile", "/update_weights", "/invocations"),
        *(
            "/ping",
            "/tokenizer_info",
            "/v1/responses/resp_1",
            "/v1/responses/resp_1/cancel",
            "/classify",
            "/v1/embeddings",
        ),
        *("/v1/chat/completions/render", "/v1/chat/completions/batch", "/generative_scoring", "/kv_event_sources"),
        *("//v1/models", "/V1/models", "/v1/models/", "/v1%2Fmodels%00"),
    ],
)
async def test_what_is_not_listed_is_not_there(client: Client, told: Told, method: str, path: str) -> None:
    async with client() as http:
        answer = await http.request(
            method, httpx.URL("http://test").copy_with(raw_path=path.encode()), json={} if method == "POST" else None
        )
    assert (answer.status_code, told(answer)["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/v1/models/owner/name", "GET"),
        ("HEAD", "/v1/models", "GET"),
        ("DELETE", "/readyz", "GET"),
        ("NONSENSE", "/metrics", "GET"),
    ],
)
async def test_a_route_has_its_method(client: Client, method: str, path: str, allowed: str) -> None:
    async with client() as http:
        answer = await http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("name", ["m", "owner/name", "owner%2Fname", "a%20b", "..%2Fmetrics"])
async def test_a_model_s_route_ends_in_any_name_and_needs_a_key(client: Client, tmp_path: Path, name: str) -> None:
    target = httpx.URL("http://test").copy_with(raw_path=f"/v1/models/{name}".encode())
    async with client() as http:
        assert (await http.get(target)).json()["body"] is None
    key, line = make_key("alice")
    (tmp_path / "keys").write_text(line)
    async with client(api_key_file=str(tmp_path / "keys")) as http:
        assert (await http.get(target)).status_code == 401
        assert (await http.get(target, headers={"x-api-key": key})).status_code == 200


async def test_a_request_has_an_id_of_ours_inside_and_the_client_s_outside(client: Client) -> None:
    async with client() as http:
        answers = [await http.get("/v1/models", headers={"X-Request-Id": "mine-1"}) for _ in range(2)]
    inside = [answer.json()["headers"]["x-request-id"] for answer in answers]
    assert [answer.headers["x-request-id"] for answer in answers] == ["mine-1"] * 2
    assert inside == [answer.json()["state"]["request_id"] for answer in answers]
    assert len({*inside, "mine-1"}) == 3


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "<script>", "../x", "ä", 'a"b'])
async def test_an_id_of_another_form_is_not_echoed(client: Client, given: str) -> None:
    async with client() as http:
        answer = await http.get("/livez", headers={b"X-Request-Id": given.encode("latin-1")})
    assert len(answer.headers["x-request-id"]) == 32


async def test_two_ids_are_none(client: Client) -> None:
    async with client() as http:
        answer = await http.get("/livez", headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])
    assert len(answer.headers["x-request-id"]) == 32


LEAKY = (
    'Traceback (most recent call last):\n  File "/usr/lib/python3/x.py", line 3, in run\n'
    "<Engine object at 0x7f3a5c001230> cannot open /models/secret/model.safetensors"
)


@pytest.mark.parametrize("status", [500, 501, 503])
async def test_a_failure_of_the_engine_tells_nothing(
    client: Client, told: Told, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(JSONResponse({"error": {"message": LEAKY, "code": status}}, status)) as http:
        answer = await http.post(CHAT, json={})
    assert answer.status_code == status
    assert told(answer)["type"] in ("server_error", "service_unavailable_error")
    assert "Engine" not in answer.text
    assert "Engine object" in caplog.text, "the operator reads why"


@pytest.mark.parametrize("inner", [PlainTextResponse(LEAKY, 400), JSONResponse({"error": {"message": LEAKY}}, 404)])
async def test_a_refusal_of_the_engine_tells_no_paths_and_no_addresses(client: Client, inner: JSONResponse) -> None:
    async with client(inner) as http:
        answer = await http.post(CHAT, json={})
    assert "cannot open" in answer.text
    for secret in ("0x7f", "/usr", "secret", 'File "', "x.py"):
        assert secret not in answer.text


async def test_an_exception_tells_nothing(client: Client, told: Told, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError(LEAKY)

    async with client(broken) as http:
        answer = await http.post(CHAT, json={})
    assert (answer.status_code, told(answer)["code"]) == (500, "internal_error")
    assert told(answer)["message"] == "The server failed to answer this request."


async def test_other_origins_are_not_served_unless_named(client: Client) -> None:
    asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with client() as http:
        assert "access-control-allow-origin" not in (await http.get("/livez", headers=asking)).headers
        assert (await http.options(CHAT, headers=asking)).status_code == 405
    async with client(cors_origins="https://a.example, https://b.example") as http:
        assert (await http.options(CHAT, headers=asking)).headers["access-control-allow-origin"] == "https://a.example"
        other = await http.options(CHAT, headers={**asking, "Origin": "https://c.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "asked",
    [
        "authorization,content-type,x-stainless-arch,x-stainless-helper-method,x-stainless-os,x-stainless-retry-count",
        "anthropic-beta,anthropic-dangerous-direct-browser-access,anthropic-version,content-type,x-api-key",
        "authorization,idempotency-key,openai-organization,openai-project,x-request-id,x-request-timeout",
    ],
)
async def test_a_named_origin_s_page_may_send_whatever_its_client_sends(client: Client, asked: str) -> None:
    preflight = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked,
    }
    async with client(cors_origins="https://a.example") as http:
        answer = await http.options(CHAT, headers=preflight)
        assert answer.status_code == 200
        assert set(answer.headers["access-control-allow-headers"].split(",")) == set(asked.split(","))
        assert "access-control-allow-credentials" not in answer.headers, "a page sends no cookies"
        told = await http.get("/livez", headers={"Origin": "https://a.example"})
        assert {"x-request-id", "retry-after"} <= set(told.headers["access-control-expose-headers"].split(", "))
        stranger = await http.options(CHAT, headers={**preflight, "Origin": "https://c.example"})
        assert stranger.status_code == 400
        assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"])
async def test_without_keys_the_server_answers_to_this_machine_s_names(client: Client, host: str) -> None:
    async with client(allowed_hosts=None) as http:
        for path in ("/", "/v1/models"):
            assert (await http.get(path, headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", ""]
)
async def test_a_name_that_was_pointed_here_is_not_served(client: Client, told: Told, host: str) -> None:
    async with client(allowed_hosts=None) as http:
        for method, path in (
            ("GET", "/"),
            ("GET", "/v1/models"),
            ("POST", CHAT),
            ("GET", "/metrics"),
            ("OPTIONS", CHAT),
        ):
            answer = await http.request(method, path, headers={"Host": host})
            assert (answer.status_code, told(answer)["code"]) == (421, "host_not_allowed")


async def test_hosts_are_those_named_and_the_probes_answer_to_all(client: Client) -> None:
    async with client(allowed_hosts="api.example, *.b.example") as http:
        for host, status in (("api.example", 200), ("x.b.example", 200), ("b.example", 421), ("localhost", 421)):
            assert (await http.get("/v1/models", headers={"Host": host})).status_code == status
        for path in ("/livez", "/readyz", "/health"):
            assert (await http.get(path, headers={"Host": "10.1.2.3:8000"})).status_code == 200


async def test_errors_are_logged_without_line_breaks_of_clients(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with client() as http:
            await http.get("/v1/models%0d%0aERROR forged")
    assert "\nERROR forged" not in caplog.text
