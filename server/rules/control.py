# SPDX-License-Identifier: Apache-2.0
"""Tokens of the chat format inside a conversation, which would end a message and begin another.

They are looked for where the chat template puts text, and as it will see it: decoded, and beside its neighbours.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from aerie.server.refusals import BadRequest
from aerie.server.rules.facts import Facts, TokenPieces
from aerie.server.strict_json import member

CHAT_PARTS = ("messages", "input", "system", "instructions", "tools", "documents", "chat_template_kwargs")
PART_TEXTS = ("text", "refusal", "thinking", "name")
PART_LISTS = ("content", "output", "summary")
CHARACTERS_PER_TOKEN = 32
LEAST_CHARACTERS = 64 << 10
DROPPED_LINE = "x-anthropic-billing-header"
"""VLLM leaves out a line of a system message that begins so."""


def check_control(body: dict[str, Any], decoded: Iterable[tuple[str, object]], facts: Facts) -> None:
    """Nothing in a chat that ends a message; `decoded` are the arguments of its calls.

    Raises:
        BadRequest: the path of a text that holds a control token, or of a list of parts that make one together.
    """
    if facts.control is None:
        return
    for name in CHAT_PARTS:
        _check_texts(_texts(body.get(name), name), facts)
    for path, value in decoded:
        _check_texts(_texts(value, path), facts)
    for path, parts in _neighbours(body):
        if token := _split_token(_part_texts(parts), facts.pieces):
            raise _refusal(path, token)


def check_tokenized(body: dict[str, Any], facts: Facts) -> None:
    """A text to tokenise is no longer than a client can have use for: 4 MiB take 18 seconds.

    Raises:
        BadRequest: more characters than `CHARACTERS_PER_TOKEN` for each token of the context.
    """
    parts = ("prompt", *CHAT_PARTS)
    lengths = {part: sum(len(text) for _, text in _texts(body.get(part), part)) for part in parts}
    length = sum(lengths.values())
    most = max(LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * facts.context)
    if length > most:
        name = max(parts, key=lambda part: lengths[part])
        told = f"{name}: the request has {length} characters, of which {most} at most are tokenised"
        reason = f"{told}: the maximum context length is {facts.context} tokens."
        raise BadRequest(name, reason, "context_length_exceeded")


def _check_texts(texts: Iterable[tuple[str, str]], facts: Facts) -> None:
    for path, text in texts:
        if facts.control is not None and (found := facts.control.search(text)):
            raise _refusal(path, found.group())


def _refusal(path: str, token: str) -> BadRequest:
    reason = f"{path} holds {token}, which would end the message and begin another"
    return BadRequest(path, f"{reason}.", "control_token")


def _texts(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield member(path, key), key
            yield from _texts(inner, member(path, key))


def _neighbours(body: dict[str, Any]) -> Iterator[tuple[str, list[object]]]:
    """What may be joined: the parts of each message, and what the Messages API makes one system message of."""
    system = [body.get("system")]
    for name in ("messages", "input"):
        messages = body.get(name)
        for index, message in enumerate(messages if isinstance(messages, list) else []):
            if not isinstance(message, dict):
                continue
            for parts in PART_LISTS:
                if isinstance(listed := message.get(parts), list):
                    yield f"{name}[{index}].{parts}", listed
            if message.get("role") == "system":
                system.append(message.get("content"))
    yield "system", system


def _part_texts(part: object) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        for inner in part:
            yield from _part_texts(inner)
    elif isinstance(part, dict):
        yield from (part[name] for name in PART_TEXTS if isinstance(part.get(name), str))
        yield from _part_texts(part.get("content"))


def _split_token(texts: Iterable[str], pieces: TokenPieces) -> str | None:
    """A control token that texts in this order make together, whatever is trimmed of them or left out between them."""
    begun: set[str] = set()
    for text in texts:
        opened: set[str] = set()
        for shown in {text, text.strip(), text.partition("\n")[2] if text.startswith(DROPPED_LINE) else ""}:
            lengths = range(1, min(len(shown), pieces.longest) + 1)
            ends = [shown[:length] for length in lengths if shown[:length] in pieces.ends]
            for start in begun:
                if token := next((start + end for end in ends if start + end in pieces.tokens), None):
                    return token
            opened |= {start + shown for start in begun if shown and start + shown in pieces.starts}
            opened |= {shown[-length:] for length in lengths if shown[-length:] in pieces.starts}
        begun |= opened
    return None
