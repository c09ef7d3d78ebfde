# SPDX-License-Identifier: Apache-2.0
"""The paths that the server treats differently; everything else is `other`."""

from typing import Final

OBSERVED: Final = ("/livez", "/readyz", "/health", "/ping", "/metrics", "/aerie/status")
"""Whoever watches the server must get an answer whatever its load: never queued, shed, timed or drained."""

GENERATING: Final = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/inference/v1/generate",
    "/generative_scoring",
    "/invocations",
)
"""Where a POST occupies the engine until it is answered."""

TOKENIZING: Final = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
"""Where a POST takes the server's own time: let in as a request of one sequence."""

LISTED: Final = ("/v1/models", *TOKENIZING, "/version", "/docs", "/openapi.json")
OTHER: Final = "other"
LABELS: Final = (*OBSERVED, *GENERATING, *LISTED, OTHER)


def label(path: str) -> str:
    """The path as a metric's label: one of a closed set, whatever was asked for."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in LABELS else OTHER


def works(method: str, path: str) -> bool:
    """Whether a request takes a place until it is answered."""
    return method == "POST" and path in (*GENERATING, *TOKENIZING)


def generates(method: str, path: str) -> bool:
    """Whether a request makes the engine work."""
    return method == "POST" and path in GENERATING
