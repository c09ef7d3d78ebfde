# SPDX-License-Identifier: Apache-2.0
"""vLLM's refusals, word for word as it writes them, and what clients read instead."""

from typing import Any

import pytest

from aerie.server.engine_errors import refusal

CHAT, COMPLETIONS, RESPONSES, ANTHROPIC = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
CONTEXT = 512
LONG = (
    "This model's maximum context length is 512 tokens. However, your prompt contains {} input tokens, which exceeds "
    "this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value={})"
)
CHARACTERS = (
    "This model's maximum context length is 512 tokens. However, your prompt contains 9000 characters (more than 4096 "
    "characters, which is the upper bound for 512 input tokens). Please reduce the length of the input prompt."
)
NO_ROOM = "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"


def read(message: str, route: str = CHAT, status: int = 400, param: str | None = None, **body: Any) -> Any:  # noqa: ANN401 - an error
    error = {"message": message, "type": "BadRequestError", "param": param, "code": status}
    told = refusal(status, error, route, body, CONTEXT)
    assert (told.status, told.type) == (status, "invalid_request_error")
    return told


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (CHAT, {"messages": []}, "messages"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (RESPONSES, {"input": ""}, "input"),
    ],
)
@pytest.mark.parametrize(
    ("message", "lengths"),
    [
        (LONG.format(600, 600), ("512 tokens", "600 tokens")),
        (LONG.format("at least 513", 513), ("512 tokens", "at least 513 tokens")),
        (CHARACTERS, ("512 tokens", "9000 characters")),
        ("Input length (600) exceeds model's maximum context length (512).", ("512 tokens", "600 tokens")),
        (
            "The engine prompt length 600 exceeds the max_model_len 512. Please reduce prompt.",
            ("512 tokens", "600 tokens"),
        ),
        (
            "The decoder prompt (length 600) is longer than the maximum model length of 512.",
            ("512 tokens", "600 tokens"),
        ),
        (NO_ROOM, ("512 tokens", "your prompt has 512 tokens")),
    ],
)
def test_a_prompt_that_is_too_long_says_both_lengths(
    route: str, body: dict[str, Any], param: str, message: str, lengths: tuple[str, str]
) -> None:
    error = read(message, route, **body)
    assert (error.code, error.param) == ("context_length_exceeded", param)
    assert all(length in error.message for length in lengths)
    assert "got 0" not in error.message


def test_token_ids_are_counted_exactly() -> None:
    assert "has 513 tokens" in read(LONG.format("at least 513", 513), COMPLETIONS, prompt=[1] * 513).message


def test_what_is_asked_for_the_answer_is_said_too() -> None:
    error = read(LONG.format(450, 450), messages=[], max_tokens=100)
    assert "450 tokens and 100 tokens are asked for the answer" in error.message


@pytest.mark.parametrize(
    ("message", "body", "told"),
    [
        (LONG.format(600, 600), {"max_tokens": 5}, "prompt is too long: 600 tokens > 512 maximum"),
        (NO_ROOM, {"max_tokens": 5}, "prompt is too long: 512 tokens > 511 maximum"),
        (CHARACTERS, {"max_tokens": 5}, "prompt is too long: 9000 characters > 512 tokens maximum"),
        (
            LONG.format(500, 500),
            {"max_tokens": 100},
            "input length and `max_tokens` exceed context limit: 500 + 100 > 512",
        ),
    ],
)
def test_the_messages_api_says_it_in_anthropic_s_words(message: str, body: dict[str, Any], told: str) -> None:
    error = read(message, ANTHROPIC, messages=[], **body)
    assert (error.message, error.code) == (told, "context_length_exceeded")


@pytest.mark.parametrize(
    "message",
    [
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        'tool_choice="required" requires --tool-call-parser to be set',
        'tool_choice=function "f" requires --tool-call-parser to be set',
    ],
)
def test_tools_name_the_options_that_turn_them_on(message: str) -> None:
    error = read(message, messages=[], tools=[{}], tool_choice="auto")
    assert (error.code, error.param) == ("unsupported_parameter", "tool_choice")
    assert "aerie serve --enable-auto-tool-choice --tool-call-parser hermes" in error.message
    assert read(message, messages=[], tools=[{}]).param == "tools"


@pytest.mark.parametrize(
    ("message", "param", "told", "named"),
    [
        ("stop cannot contain an empty string.", None, "stop cannot contain an empty string.", None),
        (
            "top_p must be in (0, 1], got 2. (parameter=top_p, value=2)",
            "top_p",
            "top_p must be in (0, 1], got 2.",
            "top_p",
        ),
        (
            "2 validation errors:\n  {'type': 'missing', 'loc': 'body.messages.0.UserMessageParam.content', "
            "'msg': 'Field required', 'input': '<dict of 1 items>'}\n  {'type': 'x', 'loc': 'y', 'msg': 'z'}",
            "body.messages.0.ChatCompletionUserMessageParam.content",
            "messages[0].content: Field required",
            "messages[0].content",
        ),
        (
            "1 validation error:\n  {'type': 'value_error', 'loc': 'body', 'msg': \"Value error, When using "
            "`tool_choice`, `tools` must be set. (parameter=tool_choice)\", 'input': {}}",
            "tool_choice",
            "When using `tool_choice`, `tools` must be set.",
            "tool_choice",
        ),
    ],
)
def test_the_rest_has_the_form_of_this_api(message: str, param: str | None, told: str, named: str | None) -> None:
    error = read(message, param=param)
    assert (error.message, error.param, error.code) == (told, named, "invalid_value")


def test_a_message_that_begins_with_a_field_names_it() -> None:
    told = "min_tokens must be less than or equal to max_tokens=3, got 5."
    assert read(told, min_tokens=5, max_tokens=3).param == "min_tokens"


def test_a_model_that_is_not_there() -> None:
    error = read("The model `x` does not exist.", status=404)
    assert (error.code, error.param) == ("model_not_found", "model")
