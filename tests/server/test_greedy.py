# SPDX-License-Identifier: Apache-2.0
"""What OpenAI's API has as greedy, in vLLM's words: `top_p` 0, and several answers at the temperature 0."""

from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from aerie.server.observed import greedy_once, repeated
from aerie.server.rules.sampling import GREEDY_ONCE, make_greedy

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ONCE = {"vllm_xargs": {GREEDY_ONCE: 1}, "temperature": 1}


@pytest.mark.parametrize(
    ("route", "body", "said"),
    [
        (CHAT, {"top_p": 0}, {"temperature": 0}),
        (RESPONSES, {"top_p": 0.0, "temperature": 1.5}, {"temperature": 0}),
        (CHAT, {"temperature": 0, "n": 1}, {"temperature": 0, "n": 1}),
        (CHAT, {"temperature": 0, "n": 2}, {"n": 2, **ONCE}),
        (COMPLETIONS, {"temperature": 1e-6, "n": 3}, {"n": 3, **ONCE}),
        (COMPLETIONS, {"top_p": 0, "n": 2}, {"n": 2, **ONCE}),
        (CHAT, {"temperature": 0.7, "n": 2}, {"temperature": 0.7, "n": 2}),
        (CHAT, {"n": 2}, {"n": 2}),
    ],
)
def test_the_request_says_it_in_words_that_vllm_takes(route: str, body: dict[str, Any], said: dict[str, Any]) -> None:
    make_greedy(body, route)
    assert body == said
    SamplingParams(temperature=body.get("temperature", 1.0), n=body.get("n", 1), top_p=body.get("top_p", 1.0))


def test_what_a_request_declines_is_kept() -> None:
    body = {"temperature": 0, "n": 2, "vllm_xargs": {"speculation": "off"}}
    make_greedy(body, CHAT)
    assert body["vllm_xargs"] == {"speculation": "off", GREEDY_ONCE: 1}


def test_one_greedy_answer_is_generated() -> None:
    extra = {"speculation": "off", GREEDY_ONCE: 1}
    asked = SamplingParams(n=3, temperature=1, top_p=0.5, top_k=7, seed=1, max_tokens=9, extra_args=extra)
    once, choices = greedy_once(asked)
    greedy = SamplingParams(temperature=0, seed=1, max_tokens=9, extra_args={"speculation": "off"})
    assert (once, choices) == (greedy, 3)
    assert greedy_once(SamplingParams(n=3))[1] == 1


def test_it_is_given_as_often_as_it_was_asked_for() -> None:
    answer = CompletionOutput(0, "yes", [1, 2], None, None, finish_reason="stop")
    output = RequestOutput("id", None, [5], None, [answer], finished=True)
    choices = repeated(output, 2).outputs
    assert [(choice.index, choice.text, choice.token_ids) for choice in choices] == [
        (0, "yes", [1, 2]),
        (1, "yes", [1, 2]),
    ]
    assert [choice.index for choice in output.outputs] == [0]
    assert repeated(output, 1) is output
