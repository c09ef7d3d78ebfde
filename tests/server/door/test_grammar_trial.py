# SPDX-License-Identifier: Apache-2.0
"""Grammars on trial: what takes too long to compile or to match is ended and refused, and nothing else is."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import pytest_asyncio
import xgrammar

from aerie.server.grammars.checker import SHORT_AT_ONCE, GrammarChecker
from aerie.server.grammars.trial import judge
from aerie.server.grammars.verdict import Kind, Verdict

MEMORY = 1 << 30
AMBIGUOUS = "([^x]{0,10}x?){0,100}"
JSON_GRAMMAR = r"""
root ::= object
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}"
array ::= "[" ws (value ("," ws value)*)? "]"
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= [ \n\t]{0,20}
"""
TOKENIZER = Path(__file__).parents[3] / "checkpoints/clinic-demo/main/tokenizer.json"
WORDS = [word.replace("\u0120", " ") for word in json.loads(TOKENIZER.read_text())["model"]["vocab"]]
TOKENS = xgrammar.TokenizerInfo([*(bytes([byte]) for byte in range(256)), *(word.encode() for word in WORDS)])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", r"\d{4}-\d{2}-\d{2}"),
        ("regex", r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}"),
        ("regex", r"(\d{1,3}\.){3}\d{1,3}"),
        ("regex", r"([a-z]{1,20} ){0,50}"),
        ("regex", r"[\s\S]{0,1000}"),
        ("regex", r"(- [^\n]{1,100}\n){3,10}"),
        ("ebnf", JSON_GRAMMAR),
        ("ebnf", "root ::= " + " | ".join(f'"choice {number}"' for number in range(1000))),
        ("lark", 'start: "a" start | "b"'),
        ("json", '{"type": "string", "maxLength": 10000}'),
        ("json", json.dumps({"enum": [f"value {number}" for number in range(500)]})),
        ("json", '{"type": "string", "format": "email"}'),
        ("json", '{"type": "array", "items": {"type": "array", "items": {"type": "number"}}, "maxItems": 1000}'),
        ("tag", '{"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"type": "object"}}}'),
        ("tag", '{"structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}], "triggers": ["<f"]}'),
    ],
)
def test_what_people_write_passes(kind: Kind, text: str) -> None:
    assert judge(kind, text, TOKENS, whitespace=False).outcome == "fine"


@pytest.mark.parametrize(
    ("kind", "text", "outcome"),
    [
        ("regex", AMBIGUOUS, "slow"),
        ("ebnf", 'root ::= ([^x]{0,100} "x"?){0,100}', "slow"),
        ("ebnf", "root ::= ", "unparsable"),
        ("ebnf", "root ::= root", "endless"),
        ("tag", '{"type": "structural_tag", "format": {"type": "grammar", "grammar": "root ::= root"}}', "endless"),
        ("tag", r'{"type": "structural_tag", "format": {"type": "regex", "pattern": "a[^\\s\\S]"}}', "endless"),
    ],
)
def test_what_would_stop_the_engine_is_found(kind: Kind, text: str, outcome: str) -> None:
    assert judge(kind, text, TOKENS, whitespace=False).outcome == outcome


@pytest_asyncio.fixture
async def checker() -> AsyncIterator[GrammarChecker]:
    async with GrammarChecker(TOKENS.serialize_json(), whitespace=False, seconds=0.6, memory=MEMORY) as started:
        yield started


def tries_grammars(process: psutil.Process) -> bool:
    """Whether it is a checker's process; those of other tests may have ended meanwhile."""
    try:
        return "aerie.server.grammars.process" in " ".join(process.cmdline())
    except psutil.Error:
        return False


async def test_a_compilation_without_end_is_ended_and_holds_up_nobody(checker: GrammarChecker) -> None:
    endless = json.dumps({"type": "string", "pattern": f"^{AMBIGUOUS}$"})
    stuck = [asyncio.create_task(checker.check("json", endless + " " * number)) for number in range(2)]
    assert (await checker.check("regex", "[a-z]+")).outcome == "fine"
    assert not all(task.done() for task in stuck), "a short one does not wait for long ones"
    assert [(await task).outcome for task in stuck] == ["costly"] * 2
    (process,) = [child for child in psutil.Process().children() if tries_grammars(child)]
    assert process.children() == [], "nothing goes on compiling"
    process.kill()
    assert (await checker.check("regex", "[0-9]+")).outcome in {"fine", "lost"}
    assert (await checker.check("regex", "[0-9]+")).outcome == "fine", "another process takes over"
    assert (await checker.check("json", endless)).outcome == "costly", "known without a trial"
    checker.refuse("regex", "[a-z]+")
    assert (await checker.check("regex", "[a-z]+")).outcome == "slow", "what the engine could not match"


class GatedChecker(GrammarChecker):
    """Tries nothing: notes what it would, and finds it fine once the gate is open."""

    def __init__(self) -> None:
        super().__init__("", whitespace=False, seconds=1.0, memory=MEMORY)
        self.gate = asyncio.Event()
        self.tried: list[str] = []

    async def _ask(self, kind: Kind, text: str, seconds: float) -> Verdict:
        self.tried.append(text)
        await self.gate.wait()
        return Verdict("fine")


async def test_what_nobody_waits_for_any_more_is_not_tried() -> None:
    checker = GatedChecker()
    clients = [asyncio.create_task(checker.check("regex", text)) for text in "abcd"]
    while len(checker.tried) < SHORT_AT_ONCE:
        await asyncio.sleep(0)
    for client in clients[:3]:
        client.cancel()
    await asyncio.gather(*clients[:3], return_exceptions=True)
    checker.gate.set()
    assert (await clients[3]).outcome == "fine"
    assert checker.tried == ["a", "b", "d"]
    assert (await checker.check("regex", "c")).outcome == "fine", "nor is it forgotten"
