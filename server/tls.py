# SPDX-License-Identifier: Apache-2.0
"""TLS on the server's own port. Read against the `asyncio.sslproto` of Python 3.11.

A loop's own TLS servers know neither how many handshakes are open nor what waits in the socket below: a client that
connects and says nothing would hold a place for a minute beyond `--max-connections`, and a stalled one would look as if
it read. So the loop accepts plain connections, and each is given to asyncio's TLS protocol with our limits around it.
"""

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aerie.server.connection import ConnectionLimits
from aerie.server.errors import BadOption
from aerie.server.front_settings import TlsSettings

PEM = "name a PEM file that this user may read"
Connection = Callable[..., asyncio.BaseProtocol]
"""Makes the protocol of a connection from what uvicorn passes to its class."""


class Handshakes:
    """The TLS handshakes under way, the oldest first, and how many there may be."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[TlsConnection, None] = {}

    def begin(self, connection: "TlsConnection") -> None:
        """Count a handshake. Beyond the limit the oldest one ends, which is the least likely to go on."""
        self._open[connection] = None
        if len(self._open) > self._most:
            next(iter(self._open)).abort()

    def end(self, connection: "TlsConnection") -> None:
        """Count it no longer: done, failed or gone."""
        self._open.pop(connection, None)


class TlsConnection(SSLProtocol):
    """asyncio's TLS protocol, with its handshakes counted and every waiting byte seen by the protocol above."""

    max_size = 32 << 10  # asyncio's own buffer of 256 KiB a connection would be 256 MiB for the handshakes alone

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: asyncio.Protocol,
        context: ssl.SSLContext,
        limits: ConnectionLimits,
        handshakes: Handshakes,
    ) -> None:
        self._below: asyncio.Transport | None = None
        super().__init__(
            loop,
            connection,
            context,
            waiter=None,  # type: ignore[arg-type]  # asyncio's own servers pass none either
            server_side=True,
            ssl_handshake_timeout=limits.header_seconds,  # type: ignore[arg-type]  # typeshed wants whole seconds
            ssl_shutdown_timeout=limits.write_seconds,
        )
        self._handshakes = handshakes

    def abort(self) -> None:
        """Close the connection at once."""
        if self._below is not None:
            self._below.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin the handshake. The socket below says so as soon as a byte waits in it, not after 64 KiB."""
        self._below = transport
        transport.set_write_buffer_limits(high=0)
        self._handshakes.begin(self)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The socket below is closed."""
        self._handshakes.end(self)
        super().connection_lost(exc)

    def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None:
        self._handshakes.end(self)
        super()._on_handshake_complete(handshake_exc)

    def _set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        # asyncio compares by `>=` here: a limit of 0 would pause a writer for whom nothing waits, for good.
        super()._set_write_buffer_limits(  # type: ignore[misc]  # typeshed leaves it out
            high if high is None else max(high, 1), low
        )

    def _get_write_buffer_size(self) -> int:
        size: int = super()._get_write_buffer_size()  # type: ignore[misc]  # typeshed leaves it out
        return size + (0 if self._below is None else self._below.get_write_buffer_size())


def secured(connection: Connection, context: ssl.SSLContext, limits: ConnectionLimits) -> Connection:
    """Makes `connection` behind TLS, in the place of uvicorn's protocol class."""
    handshakes = Handshakes(limits.connections)

    def make(**named: Any) -> TlsConnection:  # noqa: ANN401 - uvicorn's
        loop = asyncio.get_running_loop()
        protocol: Any = connection(**named)
        return TlsConnection(loop, protocol, context, limits, handshakes)

    return make


def open_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """The server's certificate, key and the authorities it believes; `None` where HTTP is plain.

    Raises:
        BadOption: a file is missing, is not what the option says, or the key is another certificate's.
    """
    if settings.ssl_certfile is None:
        for option, value in (
            ("--ssl-keyfile", settings.ssl_keyfile),
            ("--ssl-password-file", settings.ssl_password_file),
            ("--ssl-ca-certs", settings.ssl_ca_certs),
            ("--ssl-cert-reqs", settings.ssl_cert_reqs or None),
        ):
            if value is not None:
                raise BadOption(option, "there is no certificate", "name it by --ssl-certfile")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(context, settings, settings.ssl_certfile)
    if settings.ssl_ca_certs is not None:
        if not settings.ssl_cert_reqs:
            fix = "choose 1 (believed where a client shows one) or 2 (required)"
            raise BadOption("--ssl-cert-reqs", "--ssl-ca-certs is given, and no client is asked", fix)
        _check_certificates("--ssl-ca-certs", settings.ssl_ca_certs, context)
    elif settings.ssl_cert_reqs:
        problem = "no authority is named that clients' certificates may come from"
        raise BadOption("--ssl-cert-reqs", problem, "name them by --ssl-ca-certs")
    context.verify_mode = ssl.VerifyMode(settings.ssl_cert_reqs)
    return context


def _load_certificate(context: ssl.SSLContext, settings: TlsSettings, certificate: str) -> None:
    option, keyfile = "--ssl-keyfile", settings.ssl_keyfile
    if keyfile is None:
        option, keyfile = "--ssl-certfile", certificate
    _check_certificates("--ssl-certfile", certificate, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    key = _read(option, keyfile)
    if b"PRIVATE KEY" not in key:
        raise BadOption(option, f"{keyfile} holds no private key", "name the certificate's key by --ssl-keyfile")
    password = b""
    if settings.ssl_password_file is not None:
        password = _read("--ssl-password-file", settings.ssl_password_file).rstrip(b"\r\n")
    elif b"ENCRYPTED" in key:
        raise BadOption(option, f"{keyfile} is encrypted", "name a file by --ssl-password-file")
    try:
        # Without a function, OpenSSL would ask for a password on the terminal.
        context.load_cert_chain(certificate, keyfile, password=lambda: password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            problem = f"the key in {keyfile} does not belong to the certificate in {certificate}"
            raise BadOption(option, problem, "name the key that the certificate was made with") from None
        if password:
            option = "--ssl-password-file"
        raise BadOption(option, f"the key in {keyfile} cannot be read ({reason})", PEM) from None


def _check_certificates(option: str, path: str, context: ssl.SSLContext) -> None:
    _read(option, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise BadOption(option, f"{path} holds no certificate", PEM) from None


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadOption(option, f"cannot read {path} ({error.strerror})", PEM) from None
