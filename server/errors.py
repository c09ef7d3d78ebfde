# SPDX-License-Identifier: Apache-2.0
"""Errors of the server: what the operator reads in one line, and what a client reads in the form of its API."""

import json
from collections.abc import Mapping
from typing import ClassVar

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from aerie.server.anthropic_errors import error_body, speaks_anthropic


class BadOption(Exception):  # noqa: N818 - it is read as "bad option: --port", in code and in the log
    """An option that cannot be served; the command line prints it in one line and exits with status 2.

    `option` is the name the user typed: a flag, an environment variable, or a key of the YAML file.
    """

    def __init__(self, option: str, problem: str, fix: str) -> None:
        self.option = option
        self.problem = problem
        self.fix = fix
        super().__init__(" ".join(f"{option}: {problem}; {fix}".split()))


class EngineFailed(Exception):  # noqa: N818 - the engine failed, whatever raised inside it
    """The engine could not be started, or died; the process exits with status 1."""


class ApiError(Exception):
    """An error that a client sees. Subclasses carry the HTTP status, OpenAI's type and code, and the public text."""

    status = 500
    type = "server_error"
    code = "internal_error"
    message = "The server failed to answer this request."
    param: str | None = None
    retry_after_s: int | None = None
    closes = False
    """Whether the connection is of no use any more either."""
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, message: str | None = None, *, retry_after_s: int | None = None) -> None:
        self.message = message or self.message
        self.retry_after_s = self.retry_after_s if retry_after_s is None else retry_after_s
        super().__init__(self.message)

    def body(self, scope: Scope) -> dict[str, object]:
        """What the clients of the route parse: OpenAI's, or Anthropic's."""
        if speaks_anthropic(scope["path"]):
            return error_body(self.status, self.message, self.code, self.param)
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self, scope: Scope) -> JSONResponse:
        """The error body, with `Retry-After` where a later try can succeed."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.closes:
            headers["Connection"] = "close"
        return JSONResponse(self.body(scope), status_code=self.status, headers=headers)

    def event(self, scope: Scope) -> bytes:
        """The same as an event of a stream that has begun; clients raise it, and nothing follows."""
        body = self.body(scope)
        named = speaks_anthropic(scope["path"])
        if scope["path"] == "/v1/responses":
            # OpenAI documents the fields beside `type`, and sends them within `error`, where its clients look.
            number = scope.get("state", {}).get("sequence_number", 0)
            told = {"code": self.code, "message": self.message, "param": self.param, "sequence_number": number}
            body, named = {"type": "error", **told, **body}, True
        name = b"event: error\n" if named else b""
        return name + b"data: " + json.dumps(body).encode() + b"\n\n"


class Unavailable(ApiError):  # noqa: N818 - it states the fact
    """A later try can succeed, here or elsewhere."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"
    retry_after_s = 5


class NotReady(Unavailable):
    """The engine is not there yet."""

    code = "not_ready"


class ShuttingDown(Unavailable):
    """The server was told to stop."""

    code = "shutting_down"
    message = "The server is shutting down."
    closes = True


class EngineDead(Unavailable):
    """The engine died, and the process ends."""

    code = "engine_dead"
    message = "The engine died; the server is going down."
    closes = True


class EngineRestarting(Unavailable):
    """The engine died, and another one is on its way."""

    code = "engine_restarting"
    message = "The engine died and is being restarted."


class Overloaded(Unavailable):
    """The queue is full. `reason` says of what."""

    code = "overloaded"

    def __init__(self, reason: str, message: str, retry_after_s: int) -> None:
        self.reason = reason
        super().__init__(message, retry_after_s=retry_after_s)


class TimedOut(ApiError):  # noqa: N818 - it states the fact
    """A deadline passed; the engine's request was aborted."""

    status = 504
    type = "timeout_error"
    code = "timeout"


class QueueTimeout(TimedOut):
    """No token within the time that a request may wait for its first."""

    code = "queue_timeout"
    message = "The answer did not begin in time."
    retry_after_s = 5


class RequestTimeout(TimedOut):
    """The answer was not complete within the time that a request may take."""

    code = "request_timeout"
    message = "The answer was not complete in time."


class BadTimeout(ApiError):  # noqa: N818 - it states the fact
    """The client's own limit is no number of seconds."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_header"
    param = "X-Request-Timeout"
    message = "X-Request-Timeout must be a number of seconds above 0."


def note(scope: Scope, error: ApiError) -> None:
    """Leave the error's code where the count of answers finds it."""
    scope.setdefault("state", {})["refusal"] = getattr(error, "reason", error.code)


async def answer(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request from a middleware, above the handler below."""
    note(scope, error)
    await error.response(scope)(scope, receive, send)


async def answer_with_error_body(request: Request, error: Exception) -> JSONResponse:
    """The one handler that turns an `ApiError` into the body that the route's clients parse."""
    told = error if isinstance(error, ApiError) else ApiError()
    note(request.scope, told)
    return told.response(request.scope)
