# SPDX-License-Identifier: Apache-2.0
r"""Whether every rule of a grammar can end.

One that cannot (`root ::= root`, `[^\s\S]`) leaves the engine without a token to choose, or never stops. Productive
symbols are found as in Hopcroft and Ullman, each alternative counting the symbols that it still needs.

Read is what xgrammar 0.2.8 prints of a grammar that it has parsed: `name ::= (("a" [b-c]* rule{2, 3}) | ("d")) (=(…))`,
the last a lookahead. Macros such as `TagDispatch(…)` are taken to end.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"'  # text
    r"|\[(?:\\.|[^\]\\])*\]"  # a class of characters
    r"|\{\s*(?P<least>\d+)\s*,\s*-?\d+\s*\}"  # a repetition
    r"|[A-Za-z_][\w.-]*|::=|\(=|[()|*+?]",
    re.DOTALL,
)
ITEM = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\.|[^\\]", re.DOTALL)
ESCAPES = {"0": 0, "a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "e": 27}
LAST_CHARACTER = 0x10FFFF
NOTHING = "[]"
"""Stands for what no text matches; no rule has the name."""
Symbol = str | int


@dataclass
class Alternative:
    """One way to write a symbol: a rule, or (as an integer) a part of one in brackets."""

    rule: str
    head: Symbol
    needs: list[Symbol]
    aside: bool = False
    """It stands beside the text: a lookahead, or the arguments of a macro."""


def endless_rule(grammar: str) -> str | None:
    """The first rule that `root` comes to with an alternative that cannot end, or `None`."""
    alternatives = list(_alternatives(grammar))
    ends = _productive(alternatives)
    return next((one.rule for one in _reached(alternatives) if not ends.issuperset(one.needs)), None)


def _productive(alternatives: Sequence[Alternative]) -> set[Symbol]:
    waiting: dict[Symbol, list[int]] = defaultdict(list)
    missing = [len(alternative.needs) for alternative in alternatives]
    for index, alternative in enumerate(alternatives):
        for symbol in alternative.needs:
            waiting[symbol].append(index)
    ends: set[Symbol] = set()
    found = [one.head for one in alternatives if not one.needs]
    while found:
        symbol = found.pop()
        if symbol in ends:
            continue
        ends.add(symbol)
        for index in waiting[symbol]:
            missing[index] -= 1
            if not missing[index]:
                found.append(alternatives[index].head)
    return ends


def _reached(alternatives: Sequence[Alternative]) -> list[Alternative]:
    by_head: dict[Symbol, list[Alternative]] = defaultdict(list)
    for alternative in alternatives:
        by_head[alternative.head].append(alternative)
    seen: set[Symbol] = {"root"}
    todo: list[Symbol] = ["root"]
    while todo:
        for alternative in by_head[todo.pop()]:
            new = set(alternative.needs) - seen
            seen |= new
            todo += new
    return [one for one in alternatives if one.head in seen]


def _alternatives(grammar: str) -> Iterator[Alternative]:
    """Every alternative of every rule; what may be left out is not needed."""
    tokens = list(TOKEN.finditer(grammar))
    texts = [token.group() for token in tokens]
    rules = {text for text, then in pairwise(texts) if then == "::="}
    nested: list[Alternative] = []
    for index, (text, then) in enumerate(zip(texts, [*texts[1:], ""], strict=True)):
        symbol: Symbol | None = None
        if then == "::=":
            nested = [Alternative(text, text, [])]
            yield nested[0]
        elif not nested:
            continue
        elif text in ("(", "(="):
            macro = texts[index - 1][0].isalpha() and texts[index - 1] not in rules
            aside = nested[-1].aside or text == "(=" or macro
            nested.append(Alternative(nested[-1].rule, index, [], aside))
            yield nested[-1]
        elif text == "|":
            nested[-1] = Alternative(nested[-1].rule, nested[-1].head, [], nested[-1].aside)
            yield nested[-1]
        elif text == ")" and len(nested) > 1:
            closed = nested.pop()
            symbol = None if closed.aside else closed.head
        elif text in rules:
            symbol = text
        elif text[0] == "[" and _is_empty(text[1:-1]):
            symbol = NOTHING
        optional = then in ("*", "?") or (then[:1] == "{" and tokens[index + 1]["least"] == "0")
        if symbol is not None and not optional:
            nested[-1].needs.append(symbol)


def _is_empty(characters: str) -> bool:
    """Whether a class has no character."""
    if not characters.startswith("^"):
        return not characters
    ranges: list[tuple[int, int]] = []
    items = iter([*ITEM.findall(characters[1:]), "", ""])
    item, then = next(items), next(items)
    while item:
        low = high = _code(item)
        item, then = then, next(items, "")
        if item == "-" and then:
            high = _code(then)
            item, then = next(items, ""), next(items, "")
        ranges.append((low, high))
    covered = -1
    for low, high in sorted(ranges):
        if low > covered + 1:
            return False
        covered = max(covered, high)
    return covered >= LAST_CHARACTER


def _code(item: str) -> int:
    """The character that an item of a class stands for."""
    if item[0] != "\\":
        return ord(item)
    return int(item[2:], 16) if len(item) > 2 else ESCAPES.get(item[1], ord(item[1]))
