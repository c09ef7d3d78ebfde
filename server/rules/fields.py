# SPDX-License-Identifier: Apache-2.0
"""Fields that no route knows, that official clients send for nothing, and that vLLM knows but a client may not set."""

import json
from typing import Any

from aerie.server.refusals import BadRequest
from aerie.server.shapes import Shape, check_shape

HARMLESS = {
    "/v1/chat/completions": frozenset(
        {"store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    ),
    "/v1/responses": frozenset({"safety_identifier", "prompt_cache_retention"}),
    "/v1/messages": frozenset({"service_tier"}),
}
"""Fields of the official APIs that vLLM does not have and that change no answer; they are left out."""
HARMLESS_ANYWHERE = {
    "/v1/messages": frozenset({"cache_control", "citations"}),
    "/v1/messages/count_tokens": frozenset({"cache_control", "citations"}),
    "/v1/chat/completions": frozenset({"reasoning_content", "cache_control"}),
}
KEPT = frozenset({"reasoning_content"})
"""Not in the model, but read by a validator before it."""

NOT_SERVED = {
    "prompt_embeds": "tensors in requests are not accepted",
    "chat_template": "the model's own template is used",
    "mm_processor_kwargs": "only text is served",
    "media_io_kwargs": "only text is served",
    "kv_transfer_params": "caches are not shared between servers",
    "ec_transfer_params": "caches are not shared between servers",
    "request_id": "the server names requests; an X-Request-Id header comes back with the answer",
    "use_beam_search": "beam search is not served",
    "priority": "all requests have the same priority",
    "background": "answers are not kept",
    "previous_response_id": "answers are not kept; send the whole conversation",
    "previous_input_messages": "answers are not kept; send the whole conversation as `input`",
}


EXTENSIONS = {"speculation": "off"}
"""What `vllm_xargs` may hold: `draft_models/vllm_scheduler.py` reads it. Anything else there reaches the engine too."""


def check_fields(body: dict[str, Any], route: str, shape: Shape, *, ignore: bool) -> None:
    """Names and types of all fields, nested ones too; leaves out what may be.

    Raises:
        BadRequest: a field that no model of the route has, or of another type.
    """
    harmless = HARMLESS.get(route, frozenset())
    anywhere = HARMLESS_ANYWHERE.get(route, frozenset())

    def unknown(owner: dict[str, Any], key: str, refusal: BadRequest) -> None:
        if key in anywhere and key in KEPT:
            return
        if not (ignore or key in anywhere or (owner is body and key in harmless)):
            raise refusal
        del owner[key]

    check_shape(body, shape, "", unknown)


def check_served(body: dict[str, Any]) -> None:
    """Nothing that a client may not set; `null`, `false` and 0 set nothing.

    Raises:
        BadRequest: the field, and why.
    """
    for name, reason in NOT_SERVED.items():
        if body.get(name):
            raise BadRequest(name, f"{name} cannot be set: {reason}.", "unsupported_parameter")
        body.pop(name, None)
    extensions = body.get("vllm_xargs")
    if extensions and extensions != EXTENSIONS:
        raise BadRequest("vllm_xargs", f"vllm_xargs may only be {json.dumps(EXTENSIONS)}.", "unsupported_parameter")
