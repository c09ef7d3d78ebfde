# SPDX-License-Identifier: Apache-2.0
"""Aerie's HTTP application: its own routes first, the engine's application below them once it is ready."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from aerie.server import page
from aerie.server.errors import ApiError, answer_with_error_body
from aerie.server.house import House
from aerie.server.keys import KeyRing, open_keys
from aerie.server.middleware.admission import Admission
from aerie.server.middleware.allowed_hosts import AllowedHosts
from aerie.server.middleware.authenticate import Authenticate
from aerie.server.middleware.census import Census
from aerie.server.middleware.deadlines import Deadlines
from aerie.server.middleware.json_body import JsonBody
from aerie.server.middleware.key_concurrency import KeyConcurrency
from aerie.server.middleware.known_routes import KnownRoutes
from aerie.server.middleware.request_id import RequestId
from aerie.server.middleware.shed import Shed
from aerie.server.readiness import Readiness
from aerie.server.settings import ServeSettings
from aerie.server.status import Status, tell
from aerie.server.trust import allowed_hosts


class EngineGate:
    """Passes requests to the engine's application, or answers 503 while there is none."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one connection."""
        if scope["type"] == "websocket" and not self.readiness.open_now:
            await send({"type": "websocket.close", "code": 1013, "reason": "not ready"})
            return
        await self.readiness.application()(scope, receive, send)


def middleware(settings: ServeSettings, house: House, keys: KeyRing | None) -> list[Middleware]:
    """One class of `aerie.server.middleware` for each concern, the outermost first; each is pure ASGI."""
    doors = [Middleware(RequestId), Middleware(Census, metrics=house.telemetry.metrics)]
    hosts = allowed_hosts(settings)
    if hosts is not None:
        doors.append(Middleware(AllowedHosts, hosts=hosts))
    if settings.cors_origins is not None:
        doors.append(cors(settings.cors_origins))
    if keys is not None:
        doors.append(Middleware(Authenticate, keys=keys))
    doors.append(Middleware(KnownRoutes))
    if settings.key_concurrency is not None:
        doors.append(Middleware(KeyConcurrency, most=settings.key_concurrency))
    body = Middleware(
        JsonBody,
        max_bytes=settings.max_body_bytes,
        seconds=settings.body_seconds,
        max_depth=settings.max_json_depth,
        max_values=settings.max_json_values,
    )
    deadlines = Middleware(
        Deadlines,
        exchanges=house.exchanges,
        lost=house.readiness.lost,
        queue_timeout=settings.queue_timeout,
        request_timeout=settings.request_timeout,
    )
    shed = Middleware(Shed, occupancy=house.occupancy)
    admission = Middleware(Admission, occupancy=house.occupancy, limits=settings)
    return [*doors, shed, body, deadlines, admission]


def cors(origins: str) -> Middleware:
    """What pages of these origins may do: send any header, since clients add their own, and no cookies."""
    return Middleware(
        CORSMiddleware,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["x-request-id", "retry-after"],
    )


def create_app(settings: ServeSettings, house: House) -> FastAPI:
    """The application of `aerie serve`. It can be served at once; `house.readiness` opens the engine's routes later.

    Raises:
        BadOption: the file of API keys or the list of hosts cannot be used.
    """
    readiness = house.readiness
    keys = open_keys(settings)
    # The engine's application serves /docs and /openapi.json for the API proper.
    app = FastAPI(
        title="Aerie",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        middleware=middleware(settings, house, keys),
    )
    app.add_exception_handler(ApiError, answer_with_error_body)
    app.add_exception_handler(Exception, answer_with_error_body)

    @app.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.get("/readyz")
    @app.get("/health")
    async def readyz() -> JSONResponse:
        report = readiness.report()
        return JSONResponse(report, status_code=200 if readiness.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        told = house.telemetry.metrics
        told.ready.set(readiness.ready)
        told.in_flight.set(len(house.exchanges))
        return Response(told.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/aerie/status")
    async def status() -> Status:
        return tell(house)

    app.include_router(page.router())
    app.mount("/", EngineGate(readiness))
    return app
