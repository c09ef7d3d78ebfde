# SPDX-License-Identifier: Apache-2.0
"""Tool calls as Hermes and Qwen write them: `<tool_call>{"name": …, "arguments": …}</tool_call>`.

One function reads a text, whole or as far as it has come, so that a stream and a full answer cannot disagree. What it
has said of a text it says of every longer one: content and arguments only grow.
"""

import bisect
import json
import re
from dataclasses import dataclass

from pydantic_core import from_json

BEGIN = "<tool_call>"
HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)')
DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A call; `arguments` is JSON, or a part of one that its end or a mistake cut short."""

    name: str
    arguments: str
    whole: bool
    length: int
    """How much of the text after `<tool_call>` it takes."""


@dataclass(frozen=True)
class Reading:
    """What a text says: what stands before its first call, and its calls."""

    content: str
    calls: tuple[Call, ...]


def read(text: str, *, finished: bool) -> Reading:
    """Read a text; while it is not `finished`, what may become a call or a tag is left out.

    A tag that no call follows is content. Text after the first call is dropped, as vLLM does.
    """
    calls: list[Call] = []
    content = len(text) if finished else len(text) - _begun_tag(text)
    at = 0
    while (start := text.find(BEGIN, at)) >= 0:
        at = start + len(BEGIN)
        rest = text[at:]
        call = _read_call(rest)
        if call is not None:
            content = content if calls else start
            calls.append(call)
            if not call.whole:
                break
            at += call.length
        elif not finished and (rest.isspace() or not rest or _begins_object(rest.lstrip())):
            content = content if calls else start
            break
    before = text[:content]
    pending = not finished or calls
    return Reading("" if pending and before.isspace() else before, tuple(calls))


def _read_call(text: str) -> Call | None:
    if header := HEADER.match(text):
        arguments, whole = _object(text[header.end() :])
        try:
            return Call(json.loads(header[1]), arguments, whole, header.end() + len(arguments))
        except ValueError:
            return None
    stripped = text.lstrip()
    try:
        value, end = DECODER.raw_decode(stripped)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or "arguments" not in value:
        return None
    arguments = json.dumps(value["arguments"], ensure_ascii=False)
    return Call(value["name"], arguments, whole=True, length=len(text) - len(stripped) + end)


def _object(text: str) -> tuple[str, bool]:
    """The longest part of a text that a JSON object can begin with, and whether it is one."""
    try:
        _, end = DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        # What begins no object begins none with more behind it.
        ends = range(1, len(text) + 1)
        length = bisect.bisect_left(ends, x=True, key=lambda end: not _begins_object(text[:end]))
        return text[:length], False
    return text[:end], True


def _begins_object(text: str) -> bool:
    """Whether a text is the beginning of a JSON object, and not all of it."""
    try:
        from_json(text, allow_partial=True)
    except ValueError:
        return False
    try:
        DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return text.startswith("{")
    return False


def _begun_tag(text: str) -> int:
    """How many characters at a text's end may be the beginning of a tag."""
    return next((length for length in range(len(BEGIN) - 1, 0, -1) if text.endswith(BEGIN[:length])), 0)
