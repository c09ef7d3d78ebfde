# SPDX-License-Identifier: Apache-2.0
"""LangChain's client of OpenAI's API: `with_langchain.py ADDRESS KEY MODEL`."""

import sys
from typing import Any

from langchain_openai import ChatOpenAI

ADDRESS, KEY, MODEL = sys.argv[1:]
PROMPT = "I have had a cough for three days."
ASK = {"type": "object", "properties": {"of": {"type": "string", "pattern": "^[a-z]{1,6}$"}}, "required": ["of"]}
TOOL = {"type": "function", "function": {"name": "ask", "strict": True, "parameters": ASK}}
TRIAGE = {"type": "object", "properties": {"urgent": {"type": "boolean"}}, "required": ["urgent"]}


def model(**options: Any) -> ChatOpenAI:  # noqa: ANN401 - LangChain's own
    asked = {"temperature": 0, "max_tokens": 12, **options}
    return ChatOpenAI(model=MODEL, base_url=f"{ADDRESS}/v1", api_key=KEY, max_retries=0, **asked)


whole = model().invoke(PROMPT)
assert whole.content
assert whole.usage_metadata["output_tokens"] == 12
for streamed in (model(), model(stream_usage=True)):
    chunks = list(streamed.stream(PROMPT))
    assert "".join(chunk.content for chunk in chunks) == whole.content

calling = model(max_tokens=300, temperature=1, seed=1).bind_tools([TOOL], tool_choice="required")
(call,) = calling.invoke(PROMPT, parallel_tool_calls=False).tool_calls
assert call["name"] == "ask"
gathered = sum(list(calling.stream(PROMPT, parallel_tool_calls=False))[1:], start=next(calling.stream(PROMPT)))
assert gathered.tool_calls[0]["name"] == "ask"

schema = {"title": "triage", **TRIAGE}
parsed = model(max_tokens=300, temperature=1).with_structured_output(schema, method="json_schema").invoke(PROMPT)
assert isinstance(parsed["urgent"], bool)

response = model(use_responses_api=True).invoke(PROMPT)
assert response.text
assert "".join(chunk.text for chunk in model(use_responses_api=True).stream(PROMPT)) == response.text
