# SPDX-License-Identifier: Apache-2.0
"""Who says what in a conversation: roles that the model's template knows, contents that are there, answers to calls."""

from typing import Any

from aerie.server.refusals import BadRequest
from aerie.server.rules.facts import Facts
from aerie.server.rules.official import COUNT_TOKENS, MESSAGES, RESPONSES

ROLES = ("assistant", "developer", "function", "system", "tool", "user")
API_ROLES = {
    MESSAGES: ("assistant", "system", "user"),
    COUNT_TOKENS: ("assistant", "system", "user"),
    RESPONSES: ("assistant", "developer", "system", "user"),
}
SAID_WITHOUT_CONTENT = ("tool_calls", "function_call", "refusal", "reasoning", "reasoning_content")
"""What an assistant's message may hold in the place of its content."""


def check_roles(body: dict[str, Any], route: str, facts: Facts) -> None:
    """Every message has a role that reaches the model, its content, and the call that it answers.

    The role `developer` is `system` under another name; a template that does not know it gets the older name.

    Raises:
        BadRequest: the path of what is missing, or of a role that the template would drop in silence.
    """
    calls: set[object] = set()
    for name in ("messages", "input"):
        messages = body.get(name)
        for index, message in enumerate(messages if isinstance(messages, list) else []):
            if not isinstance(message, dict):
                raise BadRequest(f"{name}[{index}]", f"{name}[{index}] must be an object.", "invalid_type")
            path = f"{name}[{index}]"
            if name == "messages" or message.get("type", "message") == "message":
                _check_role(message, path, API_ROLES.get(route, ROLES), facts)
                _check_content(message, path)
            calls |= _calls(message)
            for where, answered in _answers(message, path):
                if "tool" not in facts.roles:
                    raise _not_rendered("tool", where)
                if answered not in calls:
                    raise BadRequest(where, f"{where} must name a call of an earlier message of the assistant.")


def _check_role(message: dict[str, Any], path: str, roles: tuple[str, ...], facts: Facts) -> None:
    role = message.get("role")
    if role not in roles:
        given = f", not {role[:32]!a}" if isinstance(role, str) else ""
        raise BadRequest(f"{path}.role", f"{path}.role must be {', '.join(roles[:-1])} or {roles[-1]}{given}.")
    if role == "developer" and role not in facts.roles:
        message["role"] = role = "system"
    if role not in facts.roles:
        raise _not_rendered(role, f"{path}.role")


def _not_rendered(role: str, path: str) -> BadRequest:
    reason = f"the chat template of this model leaves out what has the role {role}"
    return BadRequest(path, f"{path}: {reason}.", "unsupported_content")


def _check_content(message: dict[str, Any], path: str) -> None:
    if message.get("content") is not None:
        return
    if message.get("role") != "assistant":
        raise BadRequest(f"{path}.content", f"{path}.content must be a string or a list of parts.")
    if not any(message.get(name) for name in SAID_WITHOUT_CONTENT):
        raise BadRequest(f"{path}.content", f"{path} must have content or tool_calls.")


def _calls(message: dict[str, Any]) -> set[object]:
    """The ids of the calls that a message makes, in the form of any API."""
    if message.get("type") == "function_call":
        return {_hashable(message.get("call_id"))}
    parts = [*_dicts(message.get("tool_calls")), *_dicts(message.get("content"))]
    made: set[object] = {
        _hashable(part.get("id")) for part in parts if part.get("type", "function") in ("function", "tool_use")
    }
    return made - {None}


def _answers(message: dict[str, Any], path: str) -> list[tuple[str, object]]:
    """The calls that a message answers, by the path that names each."""
    if message.get("role") == "tool":
        return [(f"{path}.tool_call_id", _hashable(message.get("tool_call_id")))]
    if message.get("type") == "function_call_output":
        return [(f"{path}.call_id", _hashable(message.get("call_id")))]
    content = message.get("content")
    return [
        (f"{path}.content[{index}].tool_use_id", _hashable(part.get("tool_use_id")))
        for index, part in enumerate(content if isinstance(content, list) else [])
        if isinstance(part, dict) and part.get("type") == "tool_result"
    ]


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _hashable(value: object) -> str | None:
    return value if isinstance(value, str) else None
