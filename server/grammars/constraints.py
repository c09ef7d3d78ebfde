# SPDX-License-Identifier: Apache-2.0
"""What answers are held to: as a body states it, and as vLLM hands it to the engine, tools' calls included."""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aerie.server.errors import ApiError, Unavailable
from aerie.server.grammars.verdict import Kind, Verdict
from aerie.server.refusals import BadRequest
from aerie.server.rules.exact_schema import make_exact
from aerie.server.rules.grammars import answer_schemas
from aerie.server.rules.json_schema import bound_by_patterns, check_document

if TYPE_CHECKING:
    from vllm.sampling_params import StructuredOutputsParams


class Constraint(NamedTuple):
    """Where it stands in the body, and what it is."""

    path: str
    kind: Kind
    text: str


class Checker(Protocol):
    """What tries a grammar."""

    async def check(self, kind: Kind, text: str) -> Verdict:
        """What came of it."""


class GrammarsUntried(Unavailable):
    """The process that tries grammars ended with another one's."""

    code = "grammar_not_tried"
    message = "The grammar of this request could not be tried; send it again."


class GrammarStopped(ApiError):  # noqa: N818 - it states the fact
    """The engine ended a request whose grammar it could not follow, or not in time."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_grammar"

    def __init__(self, path: str) -> None:
        super().__init__(f"The engine gave up matching {path}: it takes too long or leaves no token to choose.")
        self.param = path


def stated(body: dict[str, Any]) -> list[Constraint]:
    """What a body states itself, before vLLM reads it; the schemas of tools are not."""
    held = body.get("structured_outputs") or {}
    stated_there = [
        Constraint("structured_outputs.regex", "regex", _text(held.get("regex"))),
        Constraint("structured_outputs.grammar", _syntax(held.get("grammar")), _text(held.get("grammar"))),
        Constraint("structured_outputs.structural_tag", "tag", _text(held.get("structural_tag"))),
        Constraint("structured_outputs.choice", "ebnf", _choice(held.get("choice"))),
        *(Constraint(path, "json", _text(schema)) for path, schema in answer_schemas(body)),
    ]
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") == "structural_tag":
        stated_there.append(Constraint("response_format", "tag", _text(form)))
    return [constraint for constraint in stated_there if constraint.text]


def final(held: "StructuredOutputsParams", path: str, *, whitespace: bool) -> Constraint | None:
    """What vLLM made of a request; schemas in it are rewritten in place, as those that a body states were.

    Raises:
        BadRequest: a schema, of a tool or within a structural tag, cannot be held to.
    """
    if held.json is not None:
        document = json.loads(held.json) if isinstance(held.json, str) else held.json
        _prepare(document, path)
        held.json = document
        return Constraint(path, "json", json.dumps(document))
    if held.structural_tag is not None:
        tag = json.loads(held.structural_tag)
        for schema in _schemas_of_tag(tag, whitespace=whitespace):
            _prepare(schema, path)
            bound_by_patterns(schema)  # around JSON, text may hold the characters that nothing else keeps out of it
        held.structural_tag = json.dumps(tag)
        return Constraint(path, "tag", held.structural_tag)
    if held.regex is not None:
        return Constraint(path, "regex", held.regex)
    if held.choice is not None:
        return Constraint(path, "ebnf", _choice(held.choice))
    return Constraint(path, _syntax(held.grammar), held.grammar) if held.grammar is not None else None


async def hold(constraints: Iterable[Constraint], checker: Checker) -> None:
    """Have each tried.

    Raises:
        BadRequest: it cannot end, or takes too long, as `invalid_grammar` and with its path.
        Unavailable: it could not be tried.
    """
    for path, kind, text in constraints:
        verdict = await checker.check(kind, text)
        reasons = {
            "endless": f"has a part that no text can match, in its rule {verdict.detail[:64]}",
            "uncompilable": f"cannot be compiled: {' '.join(verdict.detail.split())[:256]}",
            "slow": "is too ambiguous: a step of matching it would hold up every other request; bound its repetitions",
            "costly": "takes too long to compile, or too much memory; bound its repetitions (--grammar-seconds)",
        }
        if verdict.outcome == "lost":
            raise GrammarsUntried
        # What cannot be parsed meets vLLM next, which says so.
        if (reason := reasons.get(verdict.outcome)) is not None:
            raise BadRequest(path, f"{path} {reason}.", "invalid_grammar")


def _prepare(schema: object, path: str) -> None:
    check_document(schema, path)
    make_exact(schema, path)


def _schemas_of_tag(node: object, *, whitespace: bool) -> Iterator[object]:
    """Every JSON schema in a structural tag; unless whitespace is free, one character of it may stand between parts."""
    if isinstance(node, list):
        for inner in node:
            yield from _schemas_of_tag(inner, whitespace=whitespace)
    elif isinstance(node, dict):
        if "json_schema" in node and not whitespace and node.get("style", "json") == "json":
            node["max_whitespace_cnt"] = node.get("max_whitespace_cnt") or 1
        for key, inner in node.items():
            if key == "json_schema" or (key == "schema" and "begin" in node):
                yield inner
            else:
                yield from _schemas_of_tag(inner, whitespace=whitespace)


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _syntax(grammar: object) -> Kind:
    from vllm.v1.structured_output.utils import grammar_is_likely_lark

    return "lark" if isinstance(grammar, str) and grammar_is_likely_lark(grammar) else "ebnf"


def _choice(values: object) -> str:
    """Choices as the grammar that vLLM makes of them."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return ""
    from vllm.v1.structured_output.utils import choice_as_grammar

    return str(choice_as_grammar(values)) if values else ""
