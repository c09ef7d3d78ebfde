# SPDX-License-Identifier: Apache-2.0
"""Fields that no route knows, that say nothing, and that vLLM knows but a client may not set."""

import json
from typing import Any

from aerie.server.refusals import BadRequest
from aerie.server.rules.official import HARMLESS_ANYWHERE
from aerie.server.shapes import Shape, check_shape

KEPT = {"/v1/chat/completions": frozenset({"reasoning_content"})}
"""Not in the models of messages, but read by a validator before them."""

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
    "logprob_token_ids": "vLLM would apply it to every request of a step; use `top_logprobs`",
}


EXTENSIONS = {"speculation": "off"}
"""What `vllm_xargs` may hold: `draft_models/vllm_scheduler.py` reads it. Anything else there reaches the engine too."""


def check_fields(body: dict[str, Any], route: str, shape: Shape, *, ignore: bool) -> None:
    """Names and types of all fields, nested ones too; leaves out what may be, and known fields that are null.

    Raises:
        BadRequest: a field that no model of the route has, or of another type.
    """
    kept = KEPT.get(route, frozenset())
    harmless = HARMLESS_ANYWHERE.get(route, frozenset())

    def ignores(owner: dict[str, Any], key: str) -> bool | None:
        if owner is not body and key in kept:
            return None
        return ignore or (key in harmless)

    for name in [name for name, value in body.items() if value is None and name in shape.fields]:
        del body[name]
    check_shape(body, shape, "", ignores)


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
