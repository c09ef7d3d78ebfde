# SPDX-License-Identifier: Apache-2.0
"""Which names the server answers to: a page whose name was pointed at this machine (DNS rebinding) names its own."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.server.errors import answer
from aerie.server.refusals import HostNotAllowed
from aerie.server.request_head import HOST

PROBES = frozenset({"/livez", "/readyz", "/health"})
"""An orchestrator asks them by the pod's address, and they tell nothing."""


class AllowedHosts:
    """Answers 421 to a `Host` that is on no list, whatever its port; the page is no exception.

    Starlette's own has neither the probes' exception nor the API's errors.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.names = frozenset(host for host in hosts if not host.startswith("*"))
        self.suffixes = tuple(host[1:] for host in hosts if host.startswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in PROBES and not self._allows(Headers(scope=scope)):
            await answer(HostNotAllowed(), scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allows(self, headers: Headers) -> bool:
        parts = HOST.fullmatch(headers.get("host", "").encode("latin-1"))
        name = parts[1].decode().lower() if parts else ""
        return name in self.names or (bool(self.suffixes) and name.endswith(self.suffixes))
