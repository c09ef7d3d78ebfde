# SPDX-License-Identifier: Apache-2.0
"""Grammars, schemas and regular expressions with a part that no text can match; xgrammar and vLLM let them pass.

The engine then has no token to choose: the request fails with 500, after any number of tokens.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from aerie.server.refusals import BadRequest
from aerie.server.rules.grammars import answer_schemas
from aerie.server.rules.productive import endless_rule

Kind = Literal["grammar", "regex", "schema"]


class Constraint(NamedTuple):
    """Where it stands in the body, and what it is."""

    path: str
    kind: Kind
    given: object


def constraints(body: dict[str, Any]) -> list[Constraint]:
    """What whole answers are held to."""
    held = body.get("structured_outputs") or {}
    found = [
        Constraint("structured_outputs.grammar", "grammar", held.get("grammar")),
        Constraint("structured_outputs.regex", "regex", held.get("regex")),
        *(Constraint(path, "schema", schema) for path, schema in answer_schemas(body)),
    ]
    return [one for one in found if one.given not in (None, "")]


def check_endings(given: Iterable[Constraint]) -> None:
    """Parse what the engine would compile. Takes up to a second for the longest grammars: run it in a thread.

    Raises:
        BadRequest: the path of what cannot be matched, as `invalid_grammar`.
    """
    for path, kind, text in given:
        try:
            parsed = _parsed(kind, text)
        except Exception:  # whatever it raises, vLLM meets it again, and says it
            continue
        if (rule := endless_rule(parsed)) is not None:
            reason = f"{path} has a part that no text can match, in its rule {rule[:64]}"
            raise BadRequest(path, f"{reason}.", "invalid_grammar")


def _parsed(kind: Kind, given: Any) -> str:  # noqa: ANN401 - text, or a schema
    """As xgrammar prints it."""
    from vllm.v1.structured_output.utils import compile_regex_with_timeout, grammar_is_likely_lark
    from xgrammar import Grammar

    if kind == "regex":
        return str(compile_regex_with_timeout(Grammar.from_regex, given))
    if kind == "schema":
        return str(Grammar.from_json_schema(given if isinstance(given, str) else json.dumps(given)))
    return str(Grammar.from_lark(given) if grammar_is_likely_lark(given) else Grammar.from_ebnf(given))
