# SPDX-License-Identifier: Apache-2.0
"""The engine's errors in the form of ours: vLLM's have types of its own, and the status as their code."""

import json

from aerie.server.errors import ApiError


class EngineError(ApiError):
    """Anything from 500 on; the log has the engine's own words."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status
        if status == 503:
            self.type, self.code, self.retry_after_s = "service_unavailable_error", "unavailable", 5
            self.message = "The server cannot answer this request now."


class EngineRefusal(ApiError):  # noqa: N818 - it states what is wrong with the request
    """What vLLM refuses and our rules do not know. Of models alone it says 404."""

    type = "invalid_request_error"

    def __init__(self, status: int, message: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = "model_not_found" if status == 404 else "invalid_value"
        self.param = "model" if status == 404 else param


def engine_error(body: bytes, status: int | None = None) -> ApiError | None:
    """The error that a body of vLLM's tells, in OpenAI's form or Anthropic's; None for ours and for other bodies.

    An event of a stream has no status; its error has, in OpenAI's form.
    """
    try:
        error = json.loads(body)["error"]
        message, param, code = str(error["message"]), error.get("param"), error.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if isinstance(code, str) or "details" in error:
        return None
    status = status or code or 500
    return EngineError(status) if status >= 500 else EngineRefusal(status, message, param)
