# SPDX-License-Identifier: Apache-2.0
"""Errors as Anthropic's Messages API writes them; its clients read nothing else as a message."""

ROUTE = "/v1/messages"
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Of Anthropic's statuses we have no 529; what a later try can succeed at answers 503 as everywhere."""


def speaks_anthropic(path: str) -> bool:
    """Whether it is a path of the Messages API, also one that is not served."""
    return path == ROUTE or path.startswith(ROUTE + "/")


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, object]:
    """The body of an error; `code` is where the official client looks for the name of a cause."""
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    details = {name: text for name, text in (("error_code", code), ("param", param)) if text is not None}
    told: dict[str, object] = {"type": kind, "message": message}
    return {"type": "error", "error": {**told, "details": details} if details else told}
