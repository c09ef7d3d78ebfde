# SPDX-License-Identifier: Apache-2.0
"""Arguments of the calls in a conversation: JSON within a string, which vLLM decodes before the template sees it."""

import json
from collections.abc import Iterator
from typing import Any

from aerie.server.front_settings import LimitSettings
from aerie.server.refusals import BadRequest
from aerie.server.strict_json import check_value, count_values


def decode_arguments(body: dict[str, Any], limits: LimitSettings) -> list[tuple[str, object]]:
    """What the arguments of each call mean, by path. Text that is no JSON is left to vLLM, which passes on `{}`.

    Raises:
        BadRequest: nested deeper, or together of more values, than a body may be.
    """
    decoded: list[tuple[str, object]] = []
    values_left = limits.max_json_values
    for path, text in _arguments(body):
        values_left -= count_values(text.encode("utf-8", "surrogatepass"), values_left)
        if values_left < 0:
            raise BadRequest(
                path, f"{path}: together with the others it has more than {limits.max_json_values} values."
            )
        try:
            value = json.loads(text)
        except RecursionError:
            raise BadRequest(path, f"{path} is nested too deeply.", "invalid_json") from None
        except ValueError:
            continue
        check_value(value, path, limits.max_json_depth)
        decoded.append((path, value))
    return decoded


def _arguments(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts, of Chat and of Responses."""
    for index, message in enumerate(_dicts(body.get("messages"))):
        for place, call in enumerate(_dicts(message.get("tool_calls"))):
            function = call.get("function")
            if isinstance(function, dict) and isinstance(text := function.get("arguments"), str):
                yield f"messages[{index}].tool_calls[{place}].function.arguments", text
    for index, item in enumerate(_dicts(body.get("input"))):
        if isinstance(text := item.get("arguments"), str):
            yield f"input[{index}].arguments", text


def _dicts(value: object) -> list[dict[str, Any]]:
    """The entries of a list, with an empty object in the place of what is none."""
    return [entry if isinstance(entry, dict) else {} for entry in value] if isinstance(value, list) else []
