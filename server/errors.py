# SPDX-License-Identifier: Apache-2.0
"""Errors of the server: what the operator reads in one line, and what a client reads as an OpenAI error body."""

from fastapi import Request
from fastapi.responses import JSONResponse


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
    retry_after_s: int | None = None

    def __init__(self, message: str | None = None) -> None:
        self.message = message or self.message
        super().__init__(self.message)

    def response(self) -> JSONResponse:
        """The OpenAI error body, with `Retry-After` where a later try can succeed."""
        error = {"message": self.message, "type": self.type, "param": None, "code": self.code}
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return JSONResponse({"error": error}, status_code=self.status, headers=headers)


class NotReady(ApiError):  # noqa: N818 - it states the fact
    """The engine is not there yet, or not any more."""

    status = 503
    type = "service_unavailable_error"
    code = "not_ready"
    retry_after_s = 5


async def answer_with_error_body(request: Request, error: Exception) -> JSONResponse:
    """The one handler that turns an `ApiError` into the body that OpenAI's clients parse."""
    return (error if isinstance(error, ApiError) else ApiError()).response()
