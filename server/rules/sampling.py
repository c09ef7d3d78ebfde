# SPDX-License-Identifier: Apache-2.0
"""Numbers and token ids: how many, how large, and what a speculating engine cannot sample with."""

from typing import Any

from aerie.server.front_settings import LimitSettings
from aerie.server.refusals import BadRequest
from aerie.server.rules.facts import Facts

INT32 = (1 << 31) - 1
STOP_CHARACTERS = 256
SMALLEST_MIN_P = 1e-5
"""vLLM's `_SAMPLING_EPS`: what is not above it counts as 0."""

RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "top_k": (-1, INT32),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 10),
    "length_penalty": (-10, 10),
    "stream_interval": (1, 1024),
}
ANSWER_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""The longest answer, by the names of different routes."""
ID_LISTS = ("stop_token_ids", "allowed_token_ids", "bad_words")
CHOICE_ROUTES = ("/v1/chat/completions", "/v1/completions")
"""Where `n` answers may be asked for."""
GREEDY_ONCE = "aerie_greedy_once"
"""The name in `vllm_xargs` under which `server/observed.py` reads that all answers are to be one greedy answer."""
SMALLEST_TEMPERATURE = 1e-5
"""VLLM's `_SAMPLING_EPS`: what is below it is greedy."""


def ranges(facts: Facts, limits: LimitSettings) -> dict[str, tuple[float, float]]:
    """The least and the largest value of every number that a request may set."""
    lengths = dict.fromkeys(ANSWER_TOKENS, (1, facts.context))
    return {
        **RANGES,
        **lengths,
        "min_tokens": (0, facts.context),
        "truncate_prompt_tokens": (-1, facts.context),
        "thinking_token_budget": (-1, facts.context),
        "n": (1, limits.max_choices),
        "logprobs": (0, limits.max_logprobs),
        "top_logprobs": (0, limits.max_logprobs),
        "prompt_logprobs": (0, limits.max_logprobs),
    }


def check_sampling(body: dict[str, Any], facts: Facts, limits: LimitSettings) -> None:
    """Hold every number of a request against its range, and every token id against the vocabulary.

    Raises:
        BadRequest: the first that is outside.
    """
    for name, (low, high) in ranges(facts, limits).items():
        value = body.get(name)
        if name == "max_tokens" and value == 0 and body.get("echo") and "prompt" in body:
            continue  # OpenAI's way to have the prompt scored
        # `logprobs` of a chat is true or false; types were checked before.
        if value is not None and not isinstance(value, bool) and not low <= value <= high:
            raise BadRequest(name, f"{name} must be from {low} up to {high}.")
    _check_stop(body, limits)
    _check_ids(body, facts, limits)
    _check_speculation(body, facts)


def make_greedy(body: dict[str, Any], route: str) -> None:
    """Say in vLLM's words what OpenAI's API has as greedy: `top_p` 0, and several answers at the temperature 0.

    VLLM takes neither. All greedy answers are one and the same, so that one is generated and given `n` times.
    """
    temperature = body.get("temperature")
    if body.get("top_p") == 0:
        body["temperature"] = temperature = 0
        del body["top_p"]
    greedy = temperature is not None and temperature < SMALLEST_TEMPERATURE
    if greedy and route in CHOICE_ROUTES and (body.get("n") or 1) > 1:
        body["temperature"] = 1  # `server/observed.py` puts 0 back
        body["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), GREEDY_ONCE: 1}


def _check_stop(body: dict[str, Any], limits: LimitSettings) -> None:
    for name in ("stop", "stop_sequences"):
        value = body.get(name)
        strings = [value] if isinstance(value, str) else value or []
        if len(strings) > limits.max_stop_strings:
            raise BadRequest(name, f"{name} must have {limits.max_stop_strings} strings at most.")
        for index, string in enumerate(strings):
            if string is not None and len(string) > STOP_CHARACTERS:
                raise BadRequest(f"{name}[{index}]", f"A stop string has {STOP_CHARACTERS} characters at most.")


def _check_ids(body: dict[str, Any], facts: Facts, limits: LimitSettings) -> None:
    for name in ID_LISTS:
        ids = body.get(name) or []
        if len(ids) > limits.max_token_ids:
            raise BadRequest(name, f"{name} must have {limits.max_token_ids} entries at most.")
        for index, token in enumerate(ids):
            if isinstance(token, int):
                check_token(token, f"{name}[{index}]", facts)
            elif isinstance(token, str) and len(token) > STOP_CHARACTERS:
                raise BadRequest(f"{name}[{index}]", f"A bad word has {STOP_CHARACTERS} characters at most.")
    bias = body.get("logit_bias") or {}
    if len(bias) > limits.max_token_ids:
        raise BadRequest("logit_bias", f"logit_bias must have {limits.max_token_ids} entries at most.")
    for token, weight in bias.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise BadRequest("logit_bias", "The keys of logit_bias must be token ids.")
        check_token(int(token), f"logit_bias.{token}", facts)
        if weight is None or not -100 <= weight <= 100:
            raise BadRequest(f"logit_bias.{token}", "A bias must be from -100 up to 100.")


def check_token(token: int, path: str, facts: Facts) -> None:
    """One token id.

    Raises:
        BadRequest: it is outside the vocabulary.
    """
    if not 0 <= token < facts.vocabulary:
        raise BadRequest(path, f"{path} must be a token id from 0 up to {facts.vocabulary - 1}.")


def _check_speculation(body: dict[str, Any], facts: Facts) -> None:
    """VLLM 0.32 can neither sample so with drafts nor leave drafting out for one request."""
    if not facts.speculative:
        return
    set_ones = {"min_p": (body.get("min_p") or 0) > SMALLEST_MIN_P, "logit_bias": bool(body.get("logit_bias"))}
    for name, is_set in set_ones.items():
        if is_set:
            reason = "this server drafts tokens, and vLLM cannot apply it to drafted ones"
            raise BadRequest(name, f"{name} cannot be set: {reason}.", "unsupported_parameter")
