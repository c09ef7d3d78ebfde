# SPDX-License-Identifier: Apache-2.0
"""What holds of answers, at once and streamed, whichever of OpenAI's clients reads them."""

import inspect
from collections.abc import AsyncIterable
from typing import Any, TypeAlias

from tests.engine.matrix import Answer, collect, read

MODEL, TOKENS, MANY_TOKENS = "target", 24, 300
TURN: Any = {"role": "user", "content": "I have had a cough for three days."}
BLOCK = 128  # tokens of a block of vLLM's cache on a CPU
BUDGET = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 8}
BEGUN = {"add_generation_prompt": False, "continue_final_message": True}
THINKING: dict[str, Any] = {
    "messages": [TURN, {"role": "assistant", "content": "<think>"}],
    "extra_body": BUDGET | BEGUN,
}
YES_OR_NO = {"structured_outputs": {"choice": ["yes", "no"]}}
LOOSE_TOOLS: Any = [{"type": "function", "function": {"name": "ask", "parameters": {"type": "object"}}}]
ASKED = ("ask", '{"of": "a"}')


Either: TypeAlias = Any
"""Either client of a company, and what either answers: what the two have in common has no type."""


async def got(answer: Either) -> Either:
    return await answer if inspect.isawaitable(answer) else answer


async def items(stream: Either) -> list[Either]:
    stream = await got(stream)
    return [item async for item in stream] if isinstance(stream, AsyncIterable) else list(stream)


def has_no_statistics(answer: Either) -> bool:
    return (getattr(answer, "metrics", None) or {}).get("speculative_decoding") is None


async def check_a_response_that_is_cut(gpt: Either) -> None:
    ask = {"model": MODEL, "input": "A cough", "max_output_tokens": TOKENS, "temperature": 0}
    whole = await got(gpt.responses.create(**ask))
    events = await items(gpt.responses.create(**ask, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text != ""
    for event in events:
        type(event).model_validate(event.model_dump())  # the client itself takes anything
    opening = ["created", "in_progress", "output_item.added", "content_part.added"]
    ending = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    kinds = [*opening, *["output_text.delta"] * len(deltas), *ending]
    assert [event.type for event in events] == [f"response.{kind}" for kind in kinds]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for response in (whole, events[-1].response):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert [item.status for item in response.output] == ["incomplete"]
    assert events[-2].item == events[-1].response.output[0]
    assert events[-1].response.output_text == whole.output_text
    assert whole.usage.output_tokens == events[-1].response.usage.output_tokens == TOKENS
    assert has_no_statistics(whole)


async def check_a_response_that_ends(gpt: Either) -> None:
    ask = {"model": MODEL, "input": "A cough", "extra_body": {"structured_outputs": {"choice": ["fever"]}}}
    whole = await got(gpt.responses.create(**ask))
    events = await items(gpt.responses.create(**ask, stream=True))
    assert events[-1].type == "response.completed"
    for response in (whole, events[-1].response):
        assert (response.status, response.output_text, response.output[0].status) == ("completed", "fever", "completed")


async def check_a_stop_string_within_the_thinking(gpt: Either) -> None:
    ask = THINKING | {"model": MODEL, "max_tokens": TOKENS, "temperature": 0}
    thought = (await got(gpt.chat.completions.create(**ask))).choices[0].message.reasoning
    choice = (await got(gpt.chat.completions.create(**ask, stop=[thought[3:5]]))).choices[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", thought[3:5])
    assert (choice.message.content, choice.message.reasoning) == (None, thought[: thought.index(thought[3:5])])
    chunks = await items(gpt.chat.completions.create(**ask, stop=[thought[3:5]], stream=True))
    last = chunks[-1].choices[0]
    assert (last.finish_reason, last.stop_reason) == ("stop", thought[3:5])
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


async def check_thinking_that_is_not_told(gpt: Either) -> None:
    extra = THINKING["extra_body"] | YES_OR_NO | {"include_reasoning": False}
    ask = {"model": MODEL, "messages": THINKING["messages"], "max_tokens": MANY_TOKENS, "temperature": 0}
    message = (await got(gpt.chat.completions.create(**ask, extra_body=extra))).choices[0].message
    assert message.content.strip() in {"yes", "no"}


async def check_stop_strings_in_the_output(gpt: Either) -> None:
    ask = {"model": MODEL, "messages": [TURN], "max_tokens": TOKENS, "temperature": 0}
    for stop, text in (([], "fever and"), (["and"], "fever and"), (["fe"], "fe"), (["cough"], "fever and")):
        extra = {"structured_outputs": {"choice": ["fever and"]}, "include_stop_str_in_output": True}
        answer = Answer(text, [], "stop")
        assert read(await got(gpt.chat.completions.create(**ask, stop=stop, extra_body=extra))) == answer
        chunks = await items(gpt.chat.completions.create(**ask, stop=stop, extra_body=extra, stream=True))
        assert collect(chunks) == answer


async def check_calls_in_texts(gpt: Either) -> None:
    """Of texts that a grammar forces, whole ones and the beginning of the last, which `max_tokens` cuts."""
    call = '<tool_call>{"name": "ask", "arguments": {"of": "a"}}</tool_call>'
    cut = call.index("}}")  # a token is a byte
    ask = {"model": MODEL, "messages": [TURN], "temperature": 0, "tools": LOOSE_TOOLS}
    for text, most, expected in (
        ("<tool_call> is a tag", MANY_TOKENS, Answer("<tool_call> is a tag", [], "stop")),
        (f"x <tool_call> y {call}", MANY_TOKENS, Answer("x <tool_call> y ", [ASKED], "tool_calls")),
        (f"{call} and {call}", MANY_TOKENS, Answer("", [ASKED] * 2, "tool_calls")),
        (call, cut, Answer("", [("ask", '{"of": "a"')], "length")),
        (call + call, len(call) + cut, Answer("", [ASKED, ("ask", '{"of": "a"')], "length")),
    ):
        forced = ask | {"max_tokens": most, "extra_body": {"structured_outputs": {"choice": [text]}}}
        assert read(await got(gpt.chat.completions.create(**forced))) == expected
        assert collect(await items(gpt.chat.completions.create(**forced, stream=True))) == expected


async def check_a_known_prompt(gpt: Either) -> None:
    """All of it comes from the cache but its last tokens, which fill no block."""
    ask = {"model": MODEL, "prompt": f"{type(gpt).__name__}: a cough".ljust(300, "."), "max_tokens": TOKENS}
    plain = {"vllm_xargs": {"speculation": "off"}}
    told = [await got(gpt.completions.create(**ask, temperature=0, extra_body=extra)) for extra in ({}, {}, plain)]
    assert len({answer.choices[0].text for answer in told}) == 1
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in told]
    assert cached == [0, 300 // BLOCK * BLOCK, 300 // BLOCK * BLOCK]


CHECKS = (
    check_a_response_that_is_cut,
    check_a_response_that_ends,
    check_a_stop_string_within_the_thinking,
    check_thinking_that_is_not_told,
    check_stop_strings_in_the_output,
    check_calls_in_texts,
    check_a_known_prompt,
)
