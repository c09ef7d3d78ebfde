# SPDX-License-Identifier: Apache-2.0
"""Fields of the official APIs that vLLM does not have: left out, or refused by name. Read against openai 3.54.

Each field of their clients is one of vLLM's, or listed here; a test compares.
"""

from typing import Any

from aerie.server.refusals import BadRequest

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"

HARMLESS = {
    CHAT: frozenset(
        {"store", "metadata", "service_tier", "safety_identifier", "prediction"}
        | {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
    ),
    RESPONSES: frozenset({"safety_identifier", "prompt_cache_options", "prompt_cache_retention", "stream_options"}),
    MESSAGES: frozenset({"service_tier", "user_profile_id", "workspace_id", "diagnostics"}),
    COUNT_TOKENS: frozenset({"user_profile_id", "workspace_id"}),
}
"""They change no answer."""
HARMLESS_ANYWHERE = {
    MESSAGES: frozenset({"cache_control", "citations"}),
    COUNT_TOKENS: frozenset({"cache_control", "citations"}),
    CHAT: frozenset({"cache_control", "include_obfuscation", "prompt_cache_breakpoint"}),
    COMPLETIONS: frozenset({"include_obfuscation"}),
    RESPONSES: frozenset({"prompt_cache_breakpoint"}),
}
"""The same for fields of objects within a body."""
ONLY: dict[str, dict[str, Any]] = {
    CHAT: {"modalities": ["text"], "verbosity": "medium", "function_call": "none"},
    MESSAGES: {"speed": "standard"},
    COUNT_TOKENS: {"speed": "standard"},
}
"""Fields that may say what is the case anyway."""

_NO_TOOLS = "this server runs no tools; it passes calls of functions on"
_NOT_MODERATED = "texts are not moderated"
_NOT_KEPT = "answers are not kept; send the whole conversation as `input`"
REFUSED = {
    CHAT: {
        "functions": "it is the legacy form of `tools`; use that",
        "function_call": "it is the legacy form of `tool_choice`; use that",
        "audio": "only text is served",
        "modalities": "only text is served",
        "verbosity": "the model has no such setting; ask for it in a message",
        "moderation": _NOT_MODERATED,
        "web_search_options": _NO_TOOLS,
    },
    COMPLETIONS: {"best_of": "answers are not compared; ask for `n` and choose"},
    RESPONSES: {
        "access_programs": "this server has none",
        "background_options": "answers are not kept",
        "context_management": "conversations are not compacted",
        "conversation": _NOT_KEPT,
        "image": "only text is served",
        "moderation": _NOT_MODERATED,
        "prompt": "prompts are not kept; send the text as `instructions` and `input`",
    },
    MESSAGES: {
        "container": _NO_TOOLS,
        "inference_geo": "the server is where it is",
        "speed": "there is one speed",
    },
    COUNT_TOKENS: {"speed": "there is one speed"},
}
"""Fields that would change an answer, and why they cannot."""


def apply_official(body: dict[str, Any], route: str) -> None:
    """Leave out what changes no answer, say in vLLM's words what it has others for, refuse the rest.

    Raises:
        BadRequest: the field, and why.
    """
    for name in HARMLESS.get(route, ()):
        body.pop(name, None)
    only = ONLY.get(route, {})
    if route == COMPLETIONS and body.get("best_of") == (body.get("n") or 1):
        body.pop("best_of", None)
    for name, reason in REFUSED.get(route, {}).items():
        value = body.get(name)
        if not value or (name in only and value == only[name]):
            body.pop(name, None)
        elif name in only:
            message = f"{name} can only be {only[name]!r}: {reason}."
            raise BadRequest(name, message, "unsupported_parameter")
        else:
            raise BadRequest(name, f"{name} cannot be set: {reason}.", "unsupported_parameter")
    _allow_tools(body)


def _allow_tools(body: dict[str, Any]) -> None:
    """`tool_choice` of the type `allowed_tools`: the others are left out, and its mode says whether one must be called.

    Chat names the tools in `tool_choice.allowed_tools.tools[].function.name`, Responses in `tool_choice.tools[].name`.
    """
    choice = body.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return
    allowed = choice.get("allowed_tools", choice)
    path = "tool_choice.allowed_tools" if allowed is not choice else "tool_choice"
    if not isinstance(allowed, dict) or allowed.get("mode") not in ("auto", "required"):
        raise BadRequest(f"{path}.mode", f"{path}.mode must be auto or required.")
    named = allowed.get("tools")
    if not isinstance(named, list) or not named:
        raise BadRequest(f"{path}.tools", f"{path}.tools must name tools.")
    tools = body.get("tools")
    known = {_name(tool): tool for tool in tools if _name(tool)} if isinstance(tools, list) else {}
    for index, tool in enumerate(named):
        if _name(tool) not in known:
            raise BadRequest(f"{path}.tools[{index}]", f"{path}.tools[{index}] is none of `tools`.")
    names = {_name(tool) for tool in named}
    body["tools"] = [tool for name, tool in known.items() if name in names]
    body["tool_choice"] = allowed["mode"]


def _name(tool: object) -> str | None:
    """The name of a function, in the form of Chat or of Responses."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
