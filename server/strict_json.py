# SPDX-License-Identifier: Apache-2.0
"""JSON as RFC 8259 has it, and no more: what Python's parser lets through besides is refused with its path.

Refused are NaN and infinities (also as 1e309), integers beyond 64 bits, duplicate keys, lone surrogates, deep nesting,
and more values than allowed, which are counted before anything is made of them.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from aerie.server.refusals import BadRequest

INT64 = 1 << 63
SHOWN_CHARACTERS = 64


@dataclass(frozen=True)
class Flaw:
    """Stands in a parsed body where something was wrong, so that the path to it can be told."""

    reason: str


def parse(body: bytes, max_depth: int, max_values: int | None = None) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a body with at most `max_values` strings, objects and arrays.

    Raises:
        BadRequest: it is no JSON, or holds what is refused; `param` is the path to that.
    """
    if max_values is not None and count_values(body, max_values) > max_values:
        raise BadRequest(
            None, f"The body has more than {max_values} strings, keys, objects and arrays.", "invalid_json"
        )
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_mapping,
            parse_float=_float,
            parse_int=_int,
            parse_constant=lambda name: Flaw(f"{name} is no JSON number"),
        )
    except RecursionError:
        raise _too_deep("") from None
    except ValueError:  # UnicodeDecodeError and JSONDecodeError are
        raise BadRequest(None, "The body is not JSON in UTF-8.", "invalid_json") from None
    check_value(value, "", max_depth)
    return value


def count_values(text: bytes, most: int) -> int:
    """The strings (keys are some), objects and arrays of a JSON text: more than `most` only where there are more.

    As Python objects they take many times their own bytes: `[],` becomes 64 bytes of memory. Numbers are bounded well
    enough by the length of the text.
    """
    estimate = text.count(b'"') // 2 + text.count(b"[") + text.count(b"{")
    if estimate <= most:
        return estimate
    # Exactly, now that it matters: prose and program text are full of brackets and escaped quotes.
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    count = unescaped.count(b'"') // 2
    if count <= most:
        outside = b"".join(unescaped.split(b'"')[::2])
        count += outside.count(b"[") + outside.count(b"{")
    return count


def member(path: str, key: str) -> str:
    """The path of an object's member; a key that is no short identifier is not repeated whole."""
    shown = key if len(key) <= SHOWN_CHARACTERS else key[:SHOWN_CHARACTERS] + "…"
    shown = shown.encode("ascii", "backslashreplace").decode("ascii")
    return f"{path}.{shown}" if path else shown


def check_value(value: object, path: str, depth_left: int) -> None:
    """Hold a parsed value against what is refused.

    Raises:
        BadRequest: a flaw of the text it was parsed from, half a surrogate pair, or deeper nesting than `depth_left`.
    """
    if isinstance(value, Flaw):
        raise BadRequest(path or None, f"{path or 'The body'}: {value.reason}.", "invalid_json")
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, list | dict):
        if depth_left == 0:
            raise _too_deep(path)
        if isinstance(value, dict):
            for key, inner in value.items():
                _check_text(key, path)
                check_value(inner, member(path, key), depth_left - 1)
        elif not all(type(inner) is int for inner in value):  # token ids are the longest lists
            for index, inner in enumerate(value):
                check_value(inner, f"{path}[{index}]", depth_left - 1)


def _check_text(text: str, path: str) -> None:
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRequest(path or None, f"{path or 'The body'}: half a surrogate pair.", "invalid_json") from None


def _too_deep(path: str) -> BadRequest:
    return BadRequest(path[:256] or None, "The body is nested too deeply.", "invalid_json")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                mapping[key] = Flaw("the key occurs twice")
            seen.add(key)
    return mapping


def _float(text: str) -> float | Flaw:
    number = float(text)
    return number if math.isfinite(number) else Flaw("the number is too large")


def _int(text: str) -> int | Flaw:
    # 20 characters hold every 64-bit integer; longer ones would cost time that grows with their square.
    number = int(text) if len(text) <= 20 else INT64
    return number if -INT64 <= number < INT64 else Flaw("the integer does not fit 64 bits")
