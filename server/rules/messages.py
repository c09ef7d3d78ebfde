# SPDX-License-Identifier: Apache-2.0
"""Prompts and messages: how many, text only, and nothing that reaches behind the chat template."""

from typing import Any

from aerie.server.front_settings import LimitSettings
from aerie.server.refusals import BadRequest
from aerie.server.rules.control import PART_LISTS
from aerie.server.rules.facts import Facts
from aerie.server.rules.sampling import check_token
from aerie.server.strict_json import member

PART_TEXT = {
    **dict.fromkeys(("text", "input_text", "output_text", "reasoning_text", "summary_text"), "text"),
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Types of content parts that are a text, and the field that holds it."""
TEXT_PARTS = frozenset({*PART_TEXT, "redacted_thinking", "tool_use", "tool_result", "tool_reference"})
TOOL_TYPES = frozenset({"function"})
TEXT_ITEMS = frozenset({None, "message", "reasoning", "function_call", "function_call_output"})
MEDIA_FIELDS = (
    *("image_url", "image", "image_pil", "image_embeds", "input_audio", "audio", "audio_url", "audio_embeds"),
    *("video_url", "video_embeds", "file", "file_id", "file_url", "file_data", "source", "prompt_embeds"),
)
TEMPLATE_PARAMETERS = frozenset(
    {
        *("chat_template", "tokenize", "conversation", "tools", "documents", "add_generation_prompt", "return_dict"),
        *("continue_final_message", "return_assistant_tokens_mask", "return_tensors", "padding", "truncation"),
        *("max_length", "tokenizer_kwargs", "processor_kwargs", "messages"),
    }
)
"""Parameters of transformers' `apply_chat_template`, which are no variables of a template."""


def check_messages(body: dict[str, Any], facts: Facts, limits: LimitSettings) -> None:
    """Everything that becomes prompt.

    Raises:
        BadRequest: too many, or no text.
    """
    _check_prompts(body, facts, limits)
    _check_counts(body, limits)
    for name in ("messages", "input"):
        items = body.get(name)
        for index, item in enumerate(items if isinstance(items, list) else []):
            _check_message(item, f"{name}[{index}]")
    _check_parts(body.get("system"), "system")
    for index, tool in enumerate(body.get("tools") or []):
        # Anthropic's have no type; the others of OpenAI's run on the server, and some fetch what they are told to.
        if isinstance(tool, dict) and tool.get("type", "function") not in TOOL_TYPES:
            path = f"tools[{index}].type"
            raise BadRequest(
                path, f"{path}: this server runs no tools; only functions may be named.", "unsupported_content"
            )
    _check_template(body)


def _check_counts(body: dict[str, Any], limits: LimitSettings) -> None:
    """What takes vLLM's event loop time by its number; counted before anything is done with each."""
    counted = {"messages": limits.max_messages, "input": limits.max_messages, "documents": limits.max_parts}
    for name, most in counted.items():
        entries = body.get(name)
        if entries == [] and name == "messages":
            raise BadRequest(name, "messages must have an entry.")
        if isinstance(entries, list) and len(entries) > most:
            raise BadRequest(name, f"{name} must have {most} entries at most.")
    parts_left = limits.max_parts - _parts(body.get("system"))
    for name in ("messages", "input"):
        entries = body.get(name)
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, dict):
                parts_left -= sum(_parts(entry.get(parts)) for parts in (*PART_LISTS, "tool_calls"))
                if len(entry.get("tools") or []) > limits.max_tools:
                    path = f"{name}[{index}].tools"
                    raise BadRequest(path, f"{path} must have {limits.max_tools} entries at most.")
    if parts_left < 0:
        name = next(name for name in ("messages", "input", "system") if name in body)
        raise BadRequest(name, f"{name}: all contents together must have {limits.max_parts} parts and calls at most.")


def _parts(parts: object) -> int:
    if not isinstance(parts, list):
        return 0
    return len(parts) + sum(_parts(part.get("content")) for part in parts if isinstance(part, dict))


def _check_prompts(body: dict[str, Any], facts: Facts, limits: LimitSettings) -> None:
    prompt = body.get("prompt")
    lists = [("prompt", prompt)] if isinstance(prompt, list) else []
    if lists and prompt and not isinstance(prompt[0], int):
        if len(prompt) > limits.max_prompts:
            raise BadRequest("prompt", f"prompt must have {limits.max_prompts} entries at most.")
        lists = [(f"prompt[{index}]", inner) for index, inner in enumerate(prompt)]
    for path, ids in [*lists, ("tokens", body.get("tokens"))]:
        if isinstance(ids, list):
            _check_ids(ids, path, facts)


def _check_ids(ids: list[Any], path: str, facts: Facts) -> None:
    for index, token in enumerate(ids):
        if not isinstance(token, int):
            raise BadRequest(f"{path}[{index}]", "A prompt is a string or a list of token ids.", "invalid_type")
        if not 0 <= token < facts.vocabulary:
            check_token(token, f"{path}[{index}]", facts)
    if path == "tokens" and len(ids) > facts.context:
        raise BadRequest(path, f"{path} must have {facts.context} entries at most, the length of the context.")


def _check_message(message: object, path: str) -> None:
    if not isinstance(message, dict):
        return
    kind = message.get("type")
    if path.startswith("input") and kind not in TEXT_ITEMS:
        raise _no_text(f"{path}.type")
    if kind == "function_call_output":
        # With it vLLM takes the item for one of an answer, whose parts its renderer fails on with 500.
        message.pop("created_by", None)
    for name in ("audio", *MEDIA_FIELDS):
        if message.get(name) is not None:
            raise _no_text(member(path, name))
    for name in PART_LISTS:
        _check_parts(message.get(name), f"{path}.{name}")
    if path.startswith("input") and message.get("role") == "assistant" and isinstance(message.get("content"), list):
        _check_output(message["content"], f"{path}.content")


def _check_output(parts: list[Any], path: str) -> None:
    """An answer given back: vLLM takes the text of its first part, and fails with 500 where that has none."""
    if not parts:
        raise BadRequest(path, f"{path} must have a part.")
    for index, part in enumerate(parts):
        if isinstance(part, dict) and part.get("type") == "refusal":
            parts[index] = {"type": "output_text", "text": part["refusal"], "annotations": []}


def _check_parts(parts: object, path: str) -> None:
    """Parts are allowed by type: one that is not listed is never looked at, let alone fetched."""
    if not isinstance(parts, list):
        return
    for index, part in enumerate(parts):
        where = f"{path}[{index}]"
        if isinstance(part, str):
            continue
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
            raise _no_text(f"{where}.type")
        for name in MEDIA_FIELDS:
            if part.get(name) is not None:
                raise _no_text(member(where, name))
        field = PART_TEXT.get(part["type"])
        if field is not None and not isinstance(part.get(field), str):
            raise BadRequest(f"{where}.{field}", f"{where}.{field} must be a string.", "invalid_type")
        _check_parts(part.get("content"), f"{where}.content")


def _no_text(path: str) -> BadRequest:
    return BadRequest(path, f"{path}: this server takes text only.", "unsupported_content")


def _check_template(body: dict[str, Any]) -> None:
    for name in body.get("chat_template_kwargs") or {}:
        if name in TEMPLATE_PARAMETERS or not name.isidentifier() or name.startswith("_"):
            path = member("chat_template_kwargs", name)
            raise BadRequest(path, f"{path} is no variable of a chat template.", "unsupported_parameter")
