# SPDX-License-Identifier: Apache-2.0
"""Options of `vllm serve` that `aerie serve` has itself, under the same name or another: one meaning, one place."""

import json
from collections.abc import Mapping

from pydantic import JsonValue

from aerie.server.errors import BadOption
from aerie.server.settings import NGRAM, fields, flag
from aerie.server.vllm_options import RENAMED, base, canonical, named

DRAFTING = "--speculative-config"
METHODS = {"eagle3", "draft_model", NGRAM}
DRAFTED = {"model": "draft", "num_speculative_tokens": "draft_tokens"}
SHORT_FORMS = {"spec_method": "method", "spec_model": "model", "spec_tokens": "num_speculative_tokens"}
AS_OURS = "give the draft by --draft, and its tokens by --draft-tokens"


def translate(
    options: Mapping[str, JsonValue], given: Mapping[str, object]
) -> tuple[dict[str, object], dict[str, JsonValue]]:
    """Fields of ours that vLLM's options amount to, and the options that are left for vLLM.

    `given` are the fields that the same source has already.

    Raises:
        BadOption: an option says otherwise than a field of the same source, or drafts in a way that is not served.
    """
    translated, left, drafting = dict[str, object](), dict[str, JsonValue](), dict[str, JsonValue]()
    for name, value in named(options).items():
        option = base(name)
        field = RENAMED.get(option, option)
        if option == "speculative_config":
            drafting |= _parts(name, value)
        elif option in SHORT_FORMS:
            drafting[SHORT_FORMS[option]] = value
        elif field in fields() and field != "engine_options":
            _put(translated, given, field, value, f"--{canonical(name)}")
        else:
            left[name] = value
    for field, drafted in _drafted(drafting).items():
        _put(translated, given, field, drafted, DRAFTING)
    return translated, left


def _put(translated: dict[str, object], given: Mapping[str, object], field: str, value: JsonValue, option: str) -> None:
    earlier = translated.get(field, given.get(field, value))
    if str(earlier) != str(value):
        raise BadOption(option, f"{value!r} is asked for, and {earlier!r} by {flag(field)}", "leave one of them out")
    translated[field] = value


def _parts(name: str, value: JsonValue) -> dict[str, JsonValue]:
    """A part of the speculative configuration by its dotted name, or the whole as JSON."""
    part = name.partition(".")[2]
    if part:
        return {part.replace("-", "_"): value}
    try:
        whole = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        whole = None
    if not isinstance(whole, dict):
        raise BadOption(DRAFTING, f"{value!r} is no JSON object", AS_OURS)
    return {key.replace("-", "_"): inner for key, inner in whole.items()}


def _drafted(config: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if not config:
        return {}
    method = config.get("method", "ngram" if "model" not in config else "draft_model")
    if method not in METHODS:
        raise BadOption(DRAFTING, f"the method {method!r} is not served", f"choose {', '.join(sorted(METHODS))}")
    if unknown := sorted(set(config) - {"method", *DRAFTED}):
        raise BadOption(DRAFTING, f"{', '.join(unknown)} cannot be set here", AS_OURS)
    fields_of_ours = {DRAFTED[name]: value for name, value in config.items() if name in DRAFTED}
    if method == NGRAM:
        return {**fields_of_ours, "draft": NGRAM}
    if "draft" not in fields_of_ours:
        raise BadOption(DRAFTING, f"the method {method!r} needs a model", AS_OURS)
    return fields_of_ours
