# SPDX-License-Identifier: Apache-2.0
"""Tool calls in texts: a stream, however it is cut into pieces, tells what the full answer tells."""

from types import SimpleNamespace
from typing import Any

import pytest

from aerie.server.exchange import CURRENT, Exchange
from aerie.server.tool_calls import read

A = '<tool_call>{"name": "ask", "arguments": {"of": "a"}}</tool_call>'
B = '<tool_call>\n{"name": "ask", "arguments": {"of": {"b": [1, "}"]}}}\n</tool_call>'
CALL_A, CALL_B = ("ask", '{"of": "a"}'), ("ask", '{"of": {"b": [1, "}"]}}')
PARTIAL = '<tool_call>{"name": "ask", "arguments": {"of": "a'
TEXTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "No call.": ("No call.", []),
    "\n\n": ("\n\n", []),
    "": ("", []),
    "ends with <tool": ("ends with <tool", []),
    "<tool_call>": ("<tool_call>", []),
    "<tool_call> is a tag": ("<tool_call> is a tag", []),
    "<tool_call> {not JSON}": ("<tool_call> {not JSON}", []),
    '<tool_call>{"no": "call"}</tool_call>': ('<tool_call>{"no": "call"}</tool_call>', []),
    '<tool_call>["ask"]': ('<tool_call>["ask"]', []),
    '<tool_call>{"name": "ask"': ('<tool_call>{"name": "ask"', []),
    A: ("", [CALL_A]),
    A + "\n" + B: ("", [CALL_A, CALL_B]),
    f"\n\n{A}": ("", [CALL_A]),
    f"Hi {A} and {B} end": ("Hi ", [CALL_A, CALL_B]),
    f"x <tool_call> y {B}": ("x <tool_call> y ", [CALL_B]),
    f"<tool_call>{A}": ("<tool_call>", [CALL_A]),
    A.removesuffix("</tool_call>"): ("", [CALL_A]),
    A.removesuffix("}</tool_call>"): ("", [CALL_A]),
    A.replace("}}", '}, "id": 1}'): ("", [CALL_A]),
    PARTIAL: ("", [("ask", '{"of": "a')]),
    A + PARTIAL: ("", [CALL_A, ("ask", '{"of": "a')]),
    A.replace('"a"', "wrong"): ("", [("ask", '{"of": ')]),
    '<tool_call>{"arguments": {"of": 1}, "name": "ask"}</tool_call>': ("", [("ask", '{"of": 1}')]),
    '<tool_call>{"name": "ask", "arguments": null}</tool_call>': ("", [("ask", "null")]),
    '<tool_call>{"name": "a\\"sk", "arguments": {"of": "</tool_call>"}}': ("", [('a"sk', '{"of": "</tool_call>"}')]),
    '<tool_call>{"name": "ask", "arguments": ' + '{"a":' * 300: ("", [("ask", '{"a":' * 200)]),
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_text_says_it_says_of_every_longer_one(text: str) -> None:
    content, calls = TEXTS[text]
    whole = read(text, finished=True)
    assert (whole.content, [(call.name, call.arguments[: 5 * 200]) for call in whole.calls]) == (content, calls)
    told = read("", finished=False)
    for end in range(len(text) + 1):
        longer = read(text[:end], finished=False)
        assert longer.content.startswith(told.content)
        assert len(longer.calls) >= len(told.calls)
        for before, now in zip(told.calls, longer.calls, strict=False):
            assert (before.name, before.arguments) == (now.name, now.arguments[: len(before.arguments)])
        told = longer
    assert whole.content.startswith(told.content)
    assert [call.arguments for call in told.calls] == [call.arguments for call in whole.calls[: len(told.calls)]]


def streamed(text: str, step: int, choice: str) -> tuple[str, list[tuple[str, str]]]:
    """What a client gathers of a stream in pieces of so many characters."""
    from aerie.server.hermes import HermesToolParser

    parser: Any = HermesToolParser(SimpleNamespace())  # type: ignore[arg-type]  # it reads text, not tokens
    request = SimpleNamespace(tool_choice=choice)
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    deltas = [parser.extract_tool_calls_streaming("", "", piece, [], [], [], request) for piece in pieces]
    content, calls = "", dict[int, tuple[str, str]]()
    for delta in filter(None, [*deltas, parser.finish_streaming()]):
        content += delta.content or ""
        for call in delta.tool_calls:
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = (name + (call.function.name or ""), arguments + call.function.arguments)
    return content, [calls[index] for index in sorted(calls)]


def full(text: str, choice: str = "auto") -> tuple[str, list[tuple[str, str]]]:
    from aerie.server.hermes import HermesToolParser

    parser: Any = HermesToolParser(SimpleNamespace())  # type: ignore[arg-type]  # as above
    answer = parser.extract_tool_calls(text, SimpleNamespace(tool_choice=choice))
    calls = [(call.function.name, call.function.arguments) for call in answer.tool_calls]
    assert answer.tools_called == bool(calls)
    return answer.content or "", calls


@pytest.mark.parametrize("choice", ["auto", "none"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_tells_what_the_full_answer_tells(text: str, choice: str) -> None:
    answer = full(text, choice)
    assert [streamed(text, step, choice) for step in (1, 3, 7, 50, 10_000)] == [answer] * 5
    assert choice == "auto" or answer == (text, [])


async def test_of_a_call_that_is_cut_anthropic_s_answer_keeps_the_text() -> None:
    """Its converter decodes the arguments."""
    assert full(A + PARTIAL) == ("", [CALL_A, ("ask", '{"of": "a')])
    CURRENT.set(Exchange({"path": "/v1/messages"}, never, never, lambda: None))
    assert full(PARTIAL) == (PARTIAL, [])
    assert full(A + PARTIAL) == ("", [CALL_A])


async def never(*_: object) -> Any:  # noqa: ANN401 - receives and sends nothing
    raise AssertionError
