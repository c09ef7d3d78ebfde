# SPDX-License-Identifier: Apache-2.0
"""All rules over one body, in order."""

import re
from typing import Any

from aerie.server.front_settings import LimitSettings
from aerie.server.keys import Salts
from aerie.server.refusals import BadRequest
from aerie.server.routes import TOKENIZING
from aerie.server.rules.control import check_control, check_tokenized
from aerie.server.rules.facts import Facts
from aerie.server.rules.fields import check_fields, check_served
from aerie.server.rules.grammars import check_grammars
from aerie.server.rules.items import check_items
from aerie.server.rules.messages import check_messages
from aerie.server.rules.official import apply_official
from aerie.server.rules.roles import check_roles
from aerie.server.rules.sampling import check_sampling, make_greedy
from aerie.server.rules.tool_calls import decode_arguments

SALT = re.compile(r"[A-Za-z0-9_.=-]{1,64}")


def check_body(body: dict[str, Any], route: str, facts: Facts, limits: LimitSettings) -> None:
    """Hold a body against every rule; leaves out the fields that may be, and says the rest in vLLM's words.

    Takes up to seconds for the largest bodies.

    Raises:
        BadRequest: the first rule it breaks, with the path of what breaks it.
    """
    check_served(body)
    apply_official(body, route)
    check_fields(body, route, facts.shapes[route], ignore=limits.unknown_fields == "ignore")
    check_sampling(body, facts, limits)
    check_messages(body, facts, limits)
    decoded = decode_arguments(body, limits)
    if limits.control_tokens == "refuse":
        check_control(body, decoded, facts)
    check_roles(body, route, facts)
    if route in TOKENIZING:
        check_tokenized(body, facts)
    check_grammars(body, limits, xgrammar=facts.xgrammar)
    check_items(body, route, facts)
    make_greedy(body, route)


def salt_cache(body: dict[str, Any], route: str, key: str | None, facts: Facts, salts: Salts) -> None:
    """Separate the prefix caches of keys, and of what a client names besides.

    Raises:
        BadRequest: the client's own `cache_salt` has other characters than letters, digits, `_`, `.`, `=` and `-`.
    """
    if "cache_salt" not in facts.shapes[route].fields:
        return
    chosen = body.get("cache_salt")
    if chosen is not None and not SALT.fullmatch(chosen):
        raise BadRequest("cache_salt", "cache_salt must be 1 to 64 letters, digits, `_`, `.`, `=` and `-`.")
    if key is not None or chosen is not None:
        body["cache_salt"] = salts.of(key or "", chosen or "")
