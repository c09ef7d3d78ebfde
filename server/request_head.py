# SPDX-License-Identifier: Apache-2.0
"""What RFC 9112 requires of a request's head and llhttp lets through."""

import re
from collections.abc import Iterable

from aerie.server.refusals import MalformedRequest, NotImplementedHere, UnsupportedVersion

Headers = Iterable[tuple[bytes, bytes]]

HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
"""`uri-host [":" port]` of RFC 9110; the first group is the name, an IPv6 address with its brackets."""
ABSOLUTE_FORM = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")
HOP_BY_HOP = frozenset({b"upgrade", b"http2-settings"})
"""Headers that mean nothing but to the connection, and nothing once its upgrade is declined."""


def check_head(method: bytes, target: bytes, version: str, headers: Headers) -> None:
    """Hold a head, its header names in lower case, against what a proxy in front would read.

    Raises:
        MalformedRequest, NotImplementedHere, UnsupportedVersion: a proxy may read it, or its framing, otherwise.
    """
    if version not in ("1.0", "1.1"):
        raise MalformedRequest("HTTP/0.9 is not served.") if version == "0.9" else UnsupportedVersion()
    if method == b"CONNECT":
        raise NotImplementedHere("This server is no proxy: it has no CONNECT.")
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings and version == "1.0":
        raise MalformedRequest("HTTP/1.0 has no Transfer-Encoding.")
    if codings and [coding.strip().lower() for coding in codings] != [b"chunked"]:
        raise NotImplementedHere("The only transfer coding is `chunked`, once.")
    _check_host(target, version, [value for name, value in headers if name == b"host"])


def without_upgrade(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """The head of the same request for a parser that is not to leave HTTP/1.1 for what `Upgrade` offers."""
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"connection":
            options = [option for option in value.split(b",") if option.strip().lower() not in HOP_BY_HOP]
            lines.append(b"connection:" + b",".join(options))
        elif name not in HOP_BY_HOP:
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])


def _check_host(target: bytes, version: str, hosts: list[bytes]) -> None:
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise MalformedRequest("A request has one Host header.")
    if hosts and HOST.fullmatch(hosts[0]) is None:
        raise MalformedRequest("The Host header is not `name` or `name:port`.")
    absolute = ABSOLUTE_FORM.match(target)
    if absolute is not None and hosts and absolute[1].lower() != hosts[0].lower():
        raise MalformedRequest("The request line and the Host header name different hosts.")
