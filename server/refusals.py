# SPDX-License-Identifier: Apache-2.0
"""What the front door answers instead of passing a request on."""

from collections.abc import Iterable
from typing import ClassVar

from aerie.server.errors import ApiError


class InvalidApiKey(ApiError):  # noqa: N818 - these state what is wrong, and clients read their codes
    """No key, an unknown one, or two different ones. The text is the same for all, and holds nothing of the key."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    message = "A valid API key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`."
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class MalformedRequest(ApiError):  # noqa: N818
    """Bytes that are no HTTP/1.1 request, or that another parser could read as a different one."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_http"
    message = "This is no valid HTTP request."
    closes = True


class HostNotAllowed(ApiError):  # noqa: N818
    """A host that is not on the list: perhaps a page whose name was made to point here (DNS rebinding)."""

    status = 421
    type = "invalid_request_error"
    code = "host_not_allowed"
    param = "Host"
    message = "This server does not answer to this host name. Its operator lists names with --allowed-hosts."


class HeadersTooLarge(ApiError):  # noqa: N818
    """A longer request line and headers, or more of them, than a request may have."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"
    message = "The request line and headers are too long, or too many."
    closes = True


class NotImplementedHere(ApiError):  # noqa: N818
    """A part of HTTP that this server does not have."""

    status = 501
    type = "invalid_request_error"
    code = "not_implemented"
    closes = True


class UnsupportedVersion(ApiError):  # noqa: N818
    """Another version of HTTP."""

    status = 505
    type = "invalid_request_error"
    code = "unsupported_http_version"
    message = "This server speaks version 1.1 of HTTP."
    closes = True


class NoSuchRoute(ApiError):  # noqa: N818
    """A path that is not on the list of routes."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"
    message = "There is no such route."


class NoSuchModel(ApiError):  # noqa: N818
    """Another model than those of `/v1/models`."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    param = "model"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name}` does not exist; GET /v1/models lists those that do.")


class WrongMethod(ApiError):  # noqa: N818
    """A known path, asked with another method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, allowed: Iterable[str]) -> None:
        methods = ", ".join(sorted(allowed))
        super().__init__(f"This route answers {methods} only.")
        self.headers = {"Allow": methods}  # type: ignore[misc]  # of this answer, not of the class


class BodyTooSlow(ApiError):  # noqa: N818
    """The body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    message = "The request's body did not arrive in time."
    closes = True


class BodyTooLarge(ApiError):  # noqa: N818
    """More bytes than a body may have, announced or sent."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"
    closes = True


class WrongMediaType(ApiError):  # noqa: N818
    """Not plain JSON."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class TooManyOfKey(ApiError):  # noqa: N818
    """The key has as many requests in flight as it may have."""

    status = 429
    type = "rate_limit_error"
    code = "key_concurrency_exceeded"
    message = "This API key has too many requests at a time."
    retry_after_s = 1


class BadRequest(ApiError):  # noqa: N818
    """A body that breaks a rule. `param` is the path of what broke it, such as `messages[0].content`."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"

    def __init__(self, param: str | None, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.code
