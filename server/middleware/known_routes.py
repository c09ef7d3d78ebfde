# SPDX-License-Identifier: Apache-2.0
"""Which routes there are: what is not on the list is not there, whatever vLLM mounts below."""

from starlette.types import ASGIApp, Receive, Scope, Send

from aerie.server.errors import answer
from aerie.server.page import FILES
from aerie.server.refusals import NoSuchRoute, WrongMethod

GET, POST = frozenset({"GET"}), frozenset({"POST"})
MODELS = "/v1/models"
MODEL = f"{MODELS}/{{model}}"
ROUTES = {
    **dict.fromkeys(FILES, frozenset({"GET", "HEAD"})),
    **dict.fromkeys(("/livez", "/readyz", "/health", "/metrics", "/version", MODELS, MODEL, "/docs"), GET),
    "/aerie/status": GET,
    "/openapi.json": GET,
    "/v1/chat/completions": POST,
    "/v1/completions": POST,
    "/v1/responses": POST,
    "/v1/messages": POST,
    "/v1/messages/count_tokens": POST,
    "/tokenize": POST,
    "/detokenize": POST,
}
"""Left out of vLLM's are those that change or stop the engine, load code or weights, take tensors, or tell of the
machine: /collective_rpc, /sleep, /pause, /scale_elastic_ep, /v1/load_lora_adapter, /inference/*, /load, /server_info
and more, and those that need a store of answers (/v1/responses/{id})."""


def route_of(path: str) -> str:
    """The key of `ROUTES` that a path belongs to: itself, except that a model's name may be anything."""
    return MODEL if path.startswith(f"{MODELS}/") and path != f"{MODELS}/" else path


class KnownRoutes:
    """Answers 404 for a path that is not listed, 405 for another method, and closes every websocket."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "no such route"})
            return
        if scope["type"] == "http":
            methods = ROUTES.get(route_of(scope["path"]))
            if methods is None:
                await answer(NoSuchRoute(), scope, receive, send)
                return
            if scope["method"] not in methods:
                await answer(WrongMethod(methods), scope, receive, send)
                return
        await self.app(scope, receive, send)
