# SPDX-License-Identifier: Apache-2.0
"""Kinds of answers: how a chat asks for each, and what must hold for one that was finished or cut at `max_tokens`."""

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own
import partial_json_parser  # type: ignore[import-untyped]  # has none
import regex  # type: ignore[import-untyped]  # its stubs are a package of their own
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "urgent": {"type": "boolean"},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "sign": {"enum": ["cough", "fever"]},
        "note": {"type": "string", "maxLength": 6},
    },
    "required": ["urgent", "days"],
    "additionalProperties": False,
}
WORD = {"type": "string", "pattern": "^[a-z]{1,6}$"}
QUESTION = {"type": "object", "properties": {"of": WORD}, "required": ["of"]}
PATTERN = r"(cough|fever) for \d{1,2} days( and a (rash|headache)){0,3}"
CHOICES = ("cough", "fever", "fever and cough")
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "strict": True, "parameters": parameters}}
    for name, parameters in (
        ("admit", {**SCHEMA, "properties": {**SCHEMA["properties"], "note": WORD}}),
        (
            "ask",
            {"type": "object", "properties": {"of": {"type": "string", "pattern": "^[a-z]{1,6}$"}}, "required": ["of"]},
        ),
    )
]
PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
TOOL_CALL = r'<tool_call>\n?\{"name": "(admit|ask)", "arguments": \{'
NAMED = {"type": "function", "function": {"name": "ask"}}

FIELDS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "json_object": {"response_format": {"type": "json_object"}},
    "json_schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "case", "schema": SCHEMA}}},
    "regex": {"extra_body": {"structured_outputs": {"regex": PATTERN}}},
    "choice": {"extra_body": {"structured_outputs": {"choice": list(CHOICES)}}},
    "tools": {"tools": TOOLS},
}

MOST_TOKENS = {"plain": (8, 32), "json_object": (8, 40), "json_schema": (24, 112), "regex": (8, 48), "choice": (3, 24)}
MOST_TOKENS |= {"tools": (56, 144)}
"""By kind: what cuts answers short, and what is enough for many to be finished. A token is a byte."""


@dataclass
class Answer:
    """What a client has read of one answer."""

    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish: str | None = None


@dataclass(frozen=True)
class Case:
    """One cell of the matrix, with one of its prompts."""

    kind: str
    stream: bool
    draft: bool
    number: int

    @property
    def greedy(self) -> bool:
        return self.number % 2 == 0

    def fields(self) -> dict[str, Any]:
        """The chat completion's arguments."""
        asked = dict(FIELDS[self.kind])
        if self.kind == "tools":
            asked["tool_choice"] = "required" if self.number % 4 < 2 else NAMED
        extra = dict(asked.pop("extra_body", {}))
        if not self.draft:
            extra["vllm_xargs"] = {"speculation": "off"}
        asked["messages"] = [{"role": "user", "content": f"{self.number}: a cough"}]
        sampling = {"temperature": 0} if self.greedy else {"temperature": 1, "seed": self.number}
        most = MOST_TOKENS[self.kind][self.number % 3 != 0]
        return {
            **asked,
            **sampling,
            "max_tokens": most,
            "stream": self.stream,
            "extra_body": extra,
        }


def cases(prompts: int) -> list[Case]:
    """All cells, with so many prompts each, neighbours unlike each other."""
    cells = product(range(prompts), FIELDS, (False, True), (False, True))
    return [Case(kind, stream, draft, number) for number, kind, stream, draft in cells]


def read(completion: ChatCompletion) -> Answer:
    """An answer that came at once."""
    (choice,) = completion.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]  # type: ignore[union-attr]  # functions are all we ask for
    return Answer(choice.message.content or "", calls, choice.finish_reason)


def collect(chunks: Iterable[ChatCompletionChunk]) -> Answer:
    """A streamed one."""
    answer = Answer()
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        assert answer.finish is None, "nothing follows the end"
        answer.text += choice.delta.content or ""
        answer.finish = choice.finish_reason
        for call in choice.delta.tool_calls or ():
            assert call.function is not None
            if call.index == len(answer.calls):
                answer.calls.append(("", ""))
            name, arguments = answer.calls[call.index]
            told = call.function
            answer.calls[call.index] = (name + (told.name or ""), arguments + (told.arguments or ""))
    return answer


async def ask_all(client: AsyncOpenAI, asked: Sequence[Case], at_once: int, model: str) -> dict[Case, Answer]:
    """Every case's answer; the client raises for whatever is none."""
    gate = asyncio.Semaphore(at_once)

    async def ask(case: Case) -> Answer:
        async with gate:
            answer = await client.chat.completions.create(model=model, **case.fields())
            return collect([chunk async for chunk in answer]) if case.stream else read(answer)

    return dict(zip(asked, await asyncio.gather(*map(ask, asked)), strict=True))


def faults(answers: Mapping[Case, Answer]) -> list[str]:
    """What is wrong with each answer that is not what was asked for."""
    found = []
    for case, answer in answers.items():
        try:
            check(case, answer)
        except (AssertionError, ValueError, jsonschema.ValidationError, partial_json_parser.MalformedJSON) as error:
            found.append(f"{case}: {answer}: {error!r:.200}")
    return found


def differing(answers: Mapping[Case, Answer]) -> list[Case]:
    """The greedy cases, with the draft and without, whose answers drafting changed."""
    drafted = [case for case in answers if case.greedy and case.draft]
    pairs = [(case, replace(case, draft=False)) for case in drafted]
    return [case for pair in pairs if answers[pair[0]] != answers[pair[1]] for case in pair]


def check(case: Case, answer: Answer) -> None:
    """Hold an answer against what was asked for.

    Raises:
        AssertionError, ValueError, jsonschema.ValidationError: it is not that.
    """
    cut = answer.finish == "length"
    if case.kind == "tools":
        (_check_cut_calls if cut else _check_calls)(case, answer)
        return
    assert cut or answer.finish == "stop"
    assert not answer.calls
    if case.kind != "plain":
        (CUT if cut else FINISHED)[case.kind](answer.text)


def _check_calls(case: Case, answer: Answer) -> None:
    named = case.fields()["tool_choice"] == NAMED
    assert answer.finish == ("stop" if named else "tool_calls")
    assert answer.text == ""
    assert len(answer.calls) == 1 if named else answer.calls
    for name, arguments in answer.calls:
        assert name == "ask" or not named
        jsonschema.validate(json.loads(arguments), PARAMETERS[name])


def _check_cut_calls(case: Case, answer: Answer) -> None:
    if not answer.calls:
        # The beginning of a call without its arguments is text.
        assert regex.fullmatch(TOOL_CALL, answer.text, partial=True)
        return
    assert answer.text == ""
    for name, arguments in answer.calls[:-1]:
        jsonschema.validate(json.loads(arguments), PARAMETERS[name])
    assert answer.calls[-1][0] in PARAMETERS
    _check_json_prefix(answer.calls[-1][1])


def _check_json_prefix(text: str) -> None:
    if text.strip():
        partial_json_parser.loads(text)


def _check_object(text: str) -> None:
    assert isinstance(json.loads(text), dict)


def _check_schema(text: str) -> None:
    # What xgrammar takes for one character may be bytes beyond Unicode, which are decoded as several.
    jsonschema.validate(json.loads(re.sub("\ufffd+", "\ufffd", text)), SCHEMA)


def _check_pattern(text: str) -> None:
    assert re.fullmatch(PATTERN, text)


def _check_pattern_prefix(text: str) -> None:
    assert regex.fullmatch(PATTERN, text, partial=True)


def _check_choice(text: str) -> None:
    assert text in CHOICES


def _check_choice_prefix(text: str) -> None:
    assert any(choice.startswith(text) for choice in CHOICES)


FINISHED: Mapping[str, Callable[[str], None]] = {
    "json_object": _check_object,
    "json_schema": _check_schema,
    "regex": _check_pattern,
    "choice": _check_choice,
}
CUT: Mapping[str, Callable[[str], None]] = {
    "json_object": _check_json_prefix,
    "json_schema": _check_json_prefix,
    "regex": _check_pattern_prefix,
    "choice": _check_choice_prefix,
}
