# SPDX-License-Identifier: Apache-2.0
"""HTTPS on the server's own port: certificates that are made here, a real uvicorn, real clients."""

import asyncio
import datetime
import functools
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.responses import Response
from tests.server.door.wire import CLOSE, POST, Serve, say

from aerie.server import checks
from aerie.server.errors import BadOption
from aerie.server.run import address
from aerie.server.settings import ServeSettings
from aerie.server.tls import open_context

Test = Callable[..., Coroutine[None, None, None]]
PASSWORD = "with: a colon"
PATIENCE = 60.0


def as_served(test: Test) -> Callable[..., None]:
    """Runs a test in uvloop, as uvicorn does where it is installed: its transports are not asyncio's."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(**fixtures))

    return run


@dataclass(frozen=True)
class Certificate:
    """A certificate for this machine that vouches for itself, and its key, as PEM files."""

    path: Path
    key: Path
    locked_key: Path
    password: Path

    @property
    def settings(self) -> dict[str, str]:
        return {"ssl_certfile": str(self.path), "ssl_keyfile": str(self.key)}

    def client(self, port: int, shown: "Certificate | None" = None) -> httpx.AsyncClient:
        """A client that believes this certificate, and shows another one."""
        context = ssl.create_default_context(cafile=self.path)
        if shown is not None:
            context.load_cert_chain(shown.path, shown.key)
        return httpx.AsyncClient(base_url=f"https://localhost:{port}", verify=context, trust_env=False)


def make_certificate(folder: Path) -> Certificate:
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    found = Certificate(*(folder / file for file in ("certificate.pem", "key.pem", "locked.pem", "password")))
    found.path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    found.key.write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
    locked = serialization.BestAvailableEncryption(PASSWORD.encode())
    found.locked_key.write_bytes(key.private_bytes(*form, locked))
    found.password.write_text(f"{PASSWORD}\n")
    return found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls") / "theirs")


@as_served
async def test_https_is_answered_and_http_is_not(serve: Serve, certificate: Certificate) -> None:
    async with serve(**certificate.settings) as port:
        async with certificate.client(port) as client:
            for _ in range(2):
                answer = await client.get("/v1/models")
                assert (answer.status_code, answer.text) == (200, "hi")
            assert (await client.post("/v1/chat/completions", json={})).text == "hi"
        assert b"HTTP" not in await say(port, b"GET /livez HTTP/1.1\r\n" + CLOSE + b"\r\n")


@as_served
async def test_an_answer_larger_than_all_buffers_arrives_whole(serve: Serve, certificate: Certificate) -> None:
    large = Response(bytes(range(256)) * (32 << 10))
    async with serve(large, **certificate.settings) as port, certificate.client(port) as client:
        assert (await client.get("/v1/models")).content == large.body


@as_served
async def test_a_key_with_a_password_and_one_beside_the_certificate(
    serve: Serve, certificate: Certificate, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.path.read_bytes() + certificate.key.read_bytes())
    locked = {**certificate.settings, "ssl_keyfile": str(certificate.locked_key)}
    for settings in (
        {"ssl_certfile": str(both)},
        {**locked, "ssl_password_file": str(certificate.password)},
    ):
        async with serve(**settings) as port, certificate.client(port) as client:
            assert (await client.get("/v1/models")).text == "hi"


@as_served
async def test_clients_show_a_certificate_where_one_is_required(
    serve: Serve, certificate: Certificate, stranger: Certificate
) -> None:
    settings = {**certificate.settings, "ssl_ca_certs": str(certificate.path), "ssl_cert_reqs": 2}
    async with serve(**settings) as port:
        async with certificate.client(port, shown=certificate) as client:
            assert (await client.get("/v1/models")).text == "hi"
        for shown in (None, stranger):
            async with certificate.client(port, shown=shown) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get("/v1/models")


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"])
@as_served
async def test_a_handshake_that_does_not_end_is_given_up(serve: Serve, certificate: Certificate, said: bytes) -> None:
    async with serve(**certificate.settings, header_seconds=0.3) as port:
        assert await say(port, said) == b""


@as_served
async def test_handshakes_are_counted_and_the_oldest_makes_room(serve: Serve, certificate: Certificate) -> None:
    settings = {**certificate.settings, "header_seconds": 600, "max_connections": 2}
    async with serve(**settings) as port, asyncio.timeout(PATIENCE):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await streams[0][0].read() == b""
        async with certificate.client(port) as client:
            assert (await client.get("/v1/models")).text == "hi"
        for _, writer in streams:
            writer.close()


@as_served
async def test_an_answer_that_is_not_read_holds_no_connection(serve: Serve, certificate: Certificate) -> None:
    large = Response(b"x" * (32 << 20))
    context = ssl.create_default_context(cafile=certificate.path)
    settings = {**certificate.settings, "write_seconds": 0.2, "max_connections": 1}
    async with serve(large, **settings) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context, limit=1024)
        writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
        await reader.readline()  # the rest fills the buffers of both sides
        async with certificate.client(port) as client:
            while True:
                try:
                    assert (await client.get("/livez")).status_code == 200
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        writer.transport.abort()


def test_the_log_names_the_scheme(certificate: Certificate) -> None:
    with checks.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address(ServeSettings(), listener) == f"http://127.0.0.1:{port}"
        secure = ServeSettings.model_validate(certificate.settings)
        assert address(secure, listener) == f"https://127.0.0.1:{port}"


Refused = Callable[..., str]


@pytest.fixture
def refused() -> Refused:
    def refusal(**settings: object) -> str:
        with pytest.raises(BadOption) as raised:
            open_context(ServeSettings.model_validate(settings))
        return str(raised.value)

    return refusal


def test_files_that_cannot_be_used_are_refused_by_name(
    refused: Refused, certificate: Certificate, stranger: Certificate, tmp_path: Path
) -> None:
    garbled, settings = tmp_path / "garbled.pem", certificate.settings
    garbled.write_bytes(b"-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n")
    garbled_key = tmp_path / "garbled-key.pem"
    garbled_key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nbm9uZQ==\n-----END PRIVATE KEY-----\n")
    absent, locked = str(tmp_path / "absent"), str(certificate.locked_key)
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")

    assert refused(**settings | {"ssl_certfile": absent}).startswith(f"--ssl-certfile: cannot read {absent} (No such")
    assert refused(**settings | {"ssl_certfile": str(garbled)}).startswith(f"--ssl-certfile: {garbled} holds no")
    assert refused(ssl_certfile=str(certificate.path)).startswith(
        f"--ssl-certfile: {certificate.path} holds no private"
    )
    assert refused(**settings | {"ssl_keyfile": absent}).startswith(f"--ssl-keyfile: cannot read {absent}")
    assert refused(**settings | {"ssl_keyfile": str(garbled_key)}).startswith("--ssl-keyfile: the key in")
    assert "does not belong to the certificate" in refused(**settings | {"ssl_keyfile": str(stranger.key)})
    assert "--ssl-password-file" in refused(**settings | {"ssl_keyfile": locked})
    assert refused(**settings | {"ssl_keyfile": locked, "ssl_password_file": str(wrong)}).startswith(
        "--ssl-password-file: the key in"
    )
    assert refused(**settings, ssl_ca_certs=str(garbled), ssl_cert_reqs=2).startswith("--ssl-ca-certs")


def test_options_that_would_have_no_effect_are_refused(refused: Refused, certificate: Certificate) -> None:
    for name in ("ssl_keyfile", "ssl_password_file", "ssl_ca_certs"):
        assert refused(**{name: str(certificate.key)}).endswith("there is no certificate; name it by --ssl-certfile")
    assert refused(ssl_cert_reqs=2).startswith("--ssl-cert-reqs: there is no certificate")
    assert refused(**certificate.settings, ssl_cert_reqs=1).startswith("--ssl-cert-reqs: no authority is named")
    assert refused(**certificate.settings, ssl_ca_certs=str(certificate.path)).startswith("--ssl-cert-reqs")
