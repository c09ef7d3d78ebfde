# SPDX-License-Identifier: Apache-2.0
"""Schemas, regular expressions and grammars, bounded before anybody compiles them."""

import json
import re
from collections.abc import Iterator
from typing import Any

from aerie.server.front_settings import LimitSettings
from aerie.server.refusals import BadRequest
from aerie.server.rules.exact_schema import make_exact
from aerie.server.rules.json_schema import MOST_COUNTED, check_document
from aerie.server.strict_json import member, parse

# Possessive, so that no text takes time that grows with its square.
COUNTED = re.compile(r"\{\s*+(\d*+)\s*+(?:,\s*+(\d*+)\s*+)?\}")
LITERALS = re.compile(
    r'"(?:\\.|[^"\\\n])*+(?P<text>")?|\[(?:\\.|[^\]\\])*+(?P<characters>\])?|(?P<comment>#)[^\n]*', re.DOTALL
)
"""What may hold braces in a grammar that count nothing: text, classes of characters, comments; what does not end is
none of them."""
RULE = re.compile(r"(?=^[ \t]*+[A-Za-z_]\w*+\s*+:)", re.MULTILINE)
"""Where a rule begins, as `name ::=` or `name:`."""
COUNTS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
FORMATS = (
    ("response_format", "json_schema", "schema"),
    ("text", "format", "schema"),
    ("output_config", "format", "schema"),
    ("structured_outputs", "json"),
)
"""Where the schemas of answers stand."""


def check_grammars(body: dict[str, Any], limits: LimitSettings, *, xgrammar: bool = True) -> None:
    """Everything in a request that a grammar is compiled from; an answer's schema is said as xgrammar holds to it.

    Raises:
        BadRequest: it is longer, deeper or larger than it may be.
    """
    tools = body.get("tools") or []
    if len(tools) > limits.max_tools:
        raise BadRequest("tools", f"tools must have {limits.max_tools} entries at most.")
    for path, schema in _schemas(body):
        _check_schema(schema, path, limits)
    for owner, key, path in _answers(body):
        owner[key] = _document(owner[key], path, limits)
        if xgrammar:
            make_exact(owner[key], path)
    for path, schema in _tools(body):  # which the model reads too: they stay as they were written
        _document(schema, path, limits)
    constraint = body.get("structured_outputs") or {}
    for name in ("regex", "whitespace_pattern"):
        _check_regex(constraint.get(name), f"structured_outputs.{name}", limits)
    _check_enum(constraint.get("choice"), "structured_outputs.choice", limits)
    for name in ("grammar", "structural_tag", "choice"):
        _check_size(constraint.get(name), f"structured_outputs.{name}", limits)
    _check_rules(constraint.get("grammar"), "structured_outputs.grammar", limits)
    _follow_tools(body)
    if isinstance(tag := constraint.get("structural_tag"), str):
        _check_schema(
            _parsed(tag, "structured_outputs.structural_tag", limits), "structured_outputs.structural_tag", limits
        )


def _follow_tools(body: dict[str, Any]) -> None:
    """A call that a client demands follows its tool's schema, unless the tool says `strict` itself.

    vLLM constrains the arguments of strict tools alone where a parser of tools has a form of its own.
    """
    choice = body.get("tool_choice")
    if choice != "required" and not isinstance(choice, dict):
        return
    for tool in body.get("tools") or []:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and "name" in function and function.get("strict") is None:
            function["strict"] = True


def _schemas(body: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Every JSON schema, and every structural tag, which holds some."""
    for name in ("response_format", "text", "output_config"):
        if isinstance(holder := body.get(name), dict):
            yield name, holder
    for index, tool in enumerate(body.get("tools") or []):
        yield f"tools[{index}]", tool
    for place, message in enumerate(body.get("messages") or []):
        if isinstance(message, dict) and message.get("tools"):
            yield f"messages[{place}].tools", message["tools"]
    if isinstance(constraint := body.get("structured_outputs"), dict) and constraint.get("json") is not None:
        yield "structured_outputs.json", constraint["json"]


def answer_schemas(body: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """The roots of the schemas that whole answers are held to."""
    for owner, key, path in _answers(body):
        yield path, owner[key]


def _answers(body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """The same: what holds each, by which key, and its path."""
    for steps in FORMATS:
        owner: object = body
        for step in steps[:-1]:
            owner = owner.get(step) if isinstance(owner, dict) else None
        if isinstance(owner, dict) and owner.get(steps[-1]) is not None:
            yield owner, steps[-1], ".".join(steps)


def _tools(body: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """The roots of the schemas that calls of tools are held to."""
    for index, tool in enumerate(body.get("tools") or []):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        for name in ("parameters", "input_schema"):
            if isinstance(function, dict) and function.get(name) is not None:
                yield f"tools[{index}].{'' if function is tool else 'function.'}{name}", function[name]


def _document(schema: object, path: str, limits: LimitSettings) -> object:
    """A checked schema, which may have been given as text."""
    document = _parsed(schema, path, limits) if isinstance(schema, str) else schema
    check_document(document, path)
    return document


def _check_schema(schema: object, path: str, limits: LimitSettings) -> None:
    if isinstance(schema, str):
        _check_size(schema, path, limits)
        schema = _parsed(schema, path, limits)
    _check_size(schema, path, limits)
    _check_node(schema, path, limits, limits.max_schema_depth)


def _parsed(text: str, path: str, limits: LimitSettings) -> object:
    try:
        return parse(text.encode(), limits.max_json_depth)
    except BadRequest as refusal:
        raise BadRequest(path, f"{path}: {refusal.message}", refusal.code) from None


def _check_node(node: object, path: str, limits: LimitSettings, depth_left: int) -> None:
    if not isinstance(node, dict | list):
        return
    if depth_left < 0:
        raise BadRequest(path[:256], f"A schema must not be nested deeper than {limits.max_schema_depth} levels.")
    if isinstance(node, list):
        for index, inner in enumerate(node):
            _check_node(inner, f"{path}[{index}]", limits, depth_left)
        return
    for key, inner in node.items():
        where = member(path, key)
        if key == "enum":
            _check_enum(inner, where, limits)
        elif key == "pattern":
            _check_regex(inner, where, limits, MOST_COUNTED)
        elif key == "regex" or (key == "grammar" and node.get("type") == "grammar"):
            check = _check_regex if key == "regex" else _check_rules
            check(inner, where, limits)
        elif key in COUNTS and isinstance(inner, int | float) and inner > limits.max_repeats:
            raise BadRequest(where, f"{where} must be {limits.max_repeats} at most.")
        elif key == "patternProperties" and isinstance(inner, dict):
            for pattern in inner:
                _check_regex(pattern, where, limits, MOST_COUNTED)
        _check_node(inner, where, limits, depth_left - 1)


def _check_size(value: object, path: str, limits: LimitSettings) -> None:
    size = len(value.encode()) if isinstance(value, str) else len(json.dumps(value))
    if value is not None and size > limits.max_schema_bytes:
        raise BadRequest(path, f"{path} must be {int(limits.max_schema_bytes)} bytes long at most.")


def _check_enum(values: object, path: str, limits: LimitSettings) -> None:
    if isinstance(values, list) and len(values) > limits.max_enum_values:
        raise BadRequest(path, f"{path} must have {limits.max_enum_values} values at most.")


def _check_regex(pattern: object, path: str, limits: LimitSettings, most_counted: int | None = None) -> None:
    if not isinstance(pattern, str):
        return
    if len(pattern) > limits.max_regex_chars:
        raise BadRequest(path, f"{path} must be {limits.max_regex_chars} characters long at most.")
    _check_counts(pattern, path, limits, most_counted)


def _check_rules(grammar: object, path: str, limits: LimitSettings) -> None:
    """Counts in EBNF or Lark, rule by rule."""
    if isinstance(grammar, str):
        counted = LITERALS.sub(lambda literal: "" if literal.lastgroup else literal.group(), grammar)
        for rule in RULE.split(counted):
            _check_counts(rule, path, limits)


def _check_counts(pattern: str, path: str, limits: LimitSettings, most_counted: int | None = None) -> None:
    """Counted repetitions inside each other multiply: `(a{99}){99}` is 9801 states."""
    product = 1
    for low, high in COUNTED.findall(pattern):
        most = max([1, *(int(number[:9]) for number in (low, high) if number)])
        if most_counted is not None and most > most_counted:
            raise BadRequest(path, f"{path}: a repetition must count to {most_counted} at most.")
        product *= most
        if product > limits.max_repeats:
            raise BadRequest(path, f"{path}: counted repetitions must multiply to {limits.max_repeats} at most.")
