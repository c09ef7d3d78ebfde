# SPDX-License-Identifier: Apache-2.0
"""Aerie's HTTP application: its own routes first, the engine's application below them once it is ready."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from aerie.server.errors import ApiError, answer_with_error_body
from aerie.server.readiness import Readiness


class EngineGate:
    """Passes requests to the engine's application, or answers 503 while there is none."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one connection."""
        if scope["type"] == "websocket" and not self.readiness.ready:
            await send({"type": "websocket.close", "code": 1013, "reason": "not ready"})
            return
        await self.readiness.application()(scope, receive, send)


def create_app(readiness: Readiness) -> FastAPI:
    """The application of `aerie serve`. It can be served at once; `readiness` opens the engine's routes later."""
    # The engine's application serves /docs and /openapi.json for the API proper.
    app = FastAPI(title="Aerie", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, answer_with_error_body)

    @app.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.get("/readyz")
    @app.get("/health")
    async def readyz() -> JSONResponse:
        report = readiness.report()
        return JSONResponse(report, status_code=200 if readiness.ready else 503)

    app.mount("/", EngineGate(readiness))
    return app
