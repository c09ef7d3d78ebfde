# SPDX-License-Identifier: Apache-2.0
"""`aerie serve` with a leak, for the soak's positive control: what it measures must tell this server from ours.

The product has no such switch: the process of `leaky_command` puts its middleware around the application that the
server makes, then runs the same command line.
"""

import os
import threading
from collections.abc import Sequence
from unittest.mock import patch

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.benchmarks.serving.processes import SERVE, serve_command
from aerie.server.app import create_app
from aerie.server.house import House
from aerie.server.settings import ServeSettings

PLANT = "from aerie.benchmarks.serving.leaky_server import plant; plant(); "
KIB_PER_REQUEST = 8
REQUESTS_PER_FD = 20
REQUESTS_PER_THREAD = 50
"""Leaks in some requests only, as real ones are: those of clients that left, say."""


class Leak:
    """Keeps memory of every request, and a descriptor and a thread of some."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.requests = 0
        self.kept: list[bytes] = []
        self.never = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leak, then serve."""
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            self.requests += 1
            # Written, as what is leaked is: pages that are only reserved do not count as memory.
            self.kept.append(os.urandom(KIB_PER_REQUEST << 10))
            if self.requests % REQUESTS_PER_FD == 0:
                os.open(os.devnull, os.O_RDONLY)
            if self.requests % REQUESTS_PER_THREAD == 0:
                threading.Thread(target=self.never.wait, daemon=True).start()
        await self.app(scope, receive, send)


def leaking(settings: ServeSettings, house: House) -> FastAPI:
    """The server's application, in a leak."""
    app = create_app(settings, house)
    app.add_middleware(Leak)
    return app


def leaky_command(port: int, arguments: Sequence[str]) -> list[str]:
    """`serve_command` of a server that leaks."""
    command = serve_command(port, arguments)
    return [PLANT + word if word == SERVE else word for word in command]


def plant() -> None:
    """Let the server that this process will start leak."""
    patch("aerie.server.run.create_app", leaking).start()
