# SPDX-License-Identifier: Apache-2.0
"""LiteLLM, speaking to what is compatible with OpenAI: `with_litellm.py ADDRESS KEY MODEL`."""

import json
import sys
from typing import Any

import litellm

ADDRESS, KEY, MODEL = sys.argv[1:]
MESSAGES = [{"role": "user", "content": "I have had a cough for three days."}]
ASK = {"type": "object", "properties": {"of": {"type": "string", "pattern": "^[a-z]{1,6}$"}}, "required": ["of"]}
TOOL = {"type": "function", "function": {"name": "ask", "strict": True, "parameters": ASK}}


def ask(**options: Any) -> Any:  # noqa: ANN401 - an answer or a stream, as LiteLLM has it
    asked = {"temperature": 0, "max_tokens": 12, **options}
    server = {"api_base": f"{ADDRESS}/v1", "api_key": KEY, "num_retries": 0}
    return litellm.completion(model=f"openai/{MODEL}", messages=MESSAGES, **server, **asked)


whole = ask()
assert whole.choices[0].message.content
assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 12)
for options in ({}, {"stream_options": {"include_usage": True}}):
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True, **options) if chunk.choices)
    assert text == whole.choices[0].message.content

calling = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 300, "temperature": 1, "seed": 1}
calling["parallel_tool_calls"] = False
for answer in (ask(**calling), litellm.stream_chunk_builder(list(ask(stream=True, **calling)))):
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.name == "ask"
    assert json.loads(call.function.arguments)["of"]
    assert answer.choices[0].finish_reason == "tool_calls"

refusal = ""
try:
    ask(extra_body={"max_tokns": 1})
except litellm.BadRequestError as error:
    refusal = str(error)
assert "max_tokns" in refusal
