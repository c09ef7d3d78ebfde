# SPDX-License-Identifier: Apache-2.0
"""`/openapi.json`: vLLM's description of itself, cut down to what this server answers and narrowed to what it accepts.

What the rules hold inside a value (grammars, control tokens) is theirs; names, types, ranges and statuses are here.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import aerie
from aerie.server.anthropic_errors import speaks_anthropic
from aerie.server.middleware.authenticate import OPEN_PATHS
from aerie.server.middleware.known_routes import ROUTES
from aerie.server.page import FILES
from aerie.server.rules.check import SALT
from aerie.server.rules.control import CHAT_PARTS
from aerie.server.rules.facts import Facts
from aerie.server.rules.fields import EXTENSIONS, NOT_SERVED
from aerie.server.rules.messages import MEDIA_FIELDS, TEXT_ITEMS, TEXT_PARTS, TOOL_TYPES
from aerie.server.rules.official import HARMLESS, ONLY, REFUSED
from aerie.server.rules.sampling import ID_LISTS, SMALLEST_MIN_P, ranges
from aerie.server.settings import ServeSettings

Schema = dict[str, Any]
PREFIX = "#/components/schemas/"
OWN = {
    "/livez": "Whether the process answers",
    "/readyz": "Whether requests are served, and why not",
    "/health": "The same as /readyz",
    "/metrics": "Prometheus metrics",
    "/aerie/status": "What is served, and how it is doing",
    "/docs": "This description, for a browser",
    "/openapi.json": "This description",
}
"""Routes that vLLM's description lacks, or that are answered before its."""
MEDIA_TYPES = {"/metrics": "text/plain", "/docs": "text/html"}
TEXT = TEXT_PARTS | TOOL_TYPES | TEXT_ITEMS
OF_VLLM: dict[str, Schema] = {
    "allowed_token_ids": {"minItems": 1},
    "seed": {"anyOf": [{"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}, {"type": "null"}]},
}
"""What vLLM refuses and does not say, or says in floats that round to more."""
KEPT = frozenset({"title", "description"})
REFUSALS = (400, 401, 404, 405, 408, 413, 415, 429, 500, 503, 504)
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}


def description_route(make: Callable[[], Schema]) -> Route:
    """`/openapi.json`, in the place of FastAPI's, which makes the description on the event loop: seconds for vLLM's.

    It is made once, beside the loop, when it is first asked for.
    """
    made: list[asyncio.Task[bytes]] = []

    def page() -> bytes:
        return json.dumps(make()).encode()

    async def answer(request: Request) -> Response:
        if not made or (made[0].done() and made[0].exception() is not None):
            made[:] = [asyncio.create_task(asyncio.to_thread(page))]
        return Response(await asyncio.shield(made[0]), media_type="application/json")

    return Route("/openapi.json", answer)


def describe(theirs: Schema, facts: Facts, settings: ServeSettings, names: list[str]) -> Schema:
    """The description of this server, from that of vLLM's application; `names` are those of the model."""
    paths = {path: theirs["paths"][path] for path in ROUTES if path in theirs["paths"] and path not in OWN}
    paths |= {path: {"get": {"summary": summary, "responses": _own(path)}} for path, summary in OWN.items()}
    schemas: Schema = {**_text_only(theirs["components"]["schemas"]), "Error": ERROR}
    for path, methods in paths.items():
        for operation in methods.values():
            operation["responses"] = _responses(path, operation)
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = {"type": "string", **_one_of(names, parameter["schema"])}
            for name in set(_references(operation.get("requestBody", {}))):
                schemas[name] = _narrowed(schemas[name], path, facts, settings)
                schemas[name]["properties"]["model"] = _one_of(names, schemas[name]["properties"]["model"])
            if path in OPEN_PATHS - set(FILES):
                operation["security"] = []
    described: Schema = {
        "openapi": theirs["openapi"],
        "info": {"title": "Aerie", "version": aerie.__version__},
        "paths": paths,
        "components": {"schemas": {name: schemas[name] for name in _reached(paths, schemas)}},
    }
    if settings.api_key_file is not None:
        described["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        described["security"] = [{"bearer": []}, {"header": []}]
    return described


def _own(path: str) -> Schema:
    content: Schema = {MEDIA_TYPES.get(path, "application/json"): {}}
    statuses = (200, 503) if path in ("/readyz", "/health") else (200,)
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _responses(path: str, operation: Schema) -> Schema:
    """Every status: the operation's own answers, and what the front door or the engine refuses with."""
    kept = {status: told for status, told in operation["responses"].items() if status == "200" or path in OWN}
    schema = {} if speaks_anthropic(path) else {"schema": {"$ref": PREFIX + "Error"}}
    refused = {"content": {"application/json": schema}}
    return {str(status): {"description": HTTPStatus(status).phrase, **refused} for status in REFUSALS} | kept


def _narrowed(model: Schema, path: str, facts: Facts, settings: ServeSettings) -> Schema:
    """The model of a request without what may not be set, and with the bounds of the rules."""
    fields = {
        name: dict(field)
        for name, field in model["properties"].items()
        if name not in NOT_SERVED and name not in REFUSED.get(path, ())
    }
    for name, (low, high) in ranges(facts, settings).items():
        if name in fields:
            fields[name] |= {"minimum": low, "maximum": high}
    for name in ID_LISTS:
        if name in fields:
            fields[name]["maxItems"] = settings.max_token_ids
    for name, bounds in OF_VLLM.items():
        if name in fields:
            fields[name] |= bounds
    if facts.speculative and "min_p" in fields:
        fields["min_p"]["maximum"] = SMALLEST_MIN_P
    if "logit_bias" in fields:
        fields["logit_bias"]["maxProperties"] = 0 if facts.speculative else settings.max_token_ids
    if "cache_salt" in fields:
        fields["cache_salt"]["pattern"] = f"^{SALT.pattern}$"
    if "vllm_xargs" in fields:
        fields["vllm_xargs"] = {"enum": [None, {}, EXTENSIONS]}
    for name in ("prompt", "messages", *(["tools"] if path == "/v1/chat/completions" else [])):
        if name in fields:
            fields[name] |= {"minItems": 1, "minLength": 1}
    fields |= {name: {} for name in HARMLESS.get(path, ()) if name not in fields}
    fields |= {name: {"enum": [None, value]} for name, value in ONLY.get(path, {}).items()}
    required = [name for name in model.get("required", ()) if name in fields]
    if "prompt" in fields and path == "/v1/completions":  # vLLM's alternative to it is not served
        required = ["prompt"]
        kinds = [kind for kind in fields["prompt"]["anyOf"] if kind != {"type": "null"}]
        fields["prompt"]["anyOf"] = [
            {**kind, "items": {**kind["items"], "minItems": 1, "minLength": 1}} if "items" in kind else kind
            for kind in kinds
        ]
    narrowed = {**model, "properties": fields, "additionalProperties": settings.unknown_fields == "ignore"}
    return {**narrowed, "required": required} if required else narrowed


def _one_of(names: list[str], field: Schema) -> Schema:
    """A field that is one of these names, or null where it may be."""
    nullable = {"type": "null"} in field.get("anyOf", ())
    return {**{key: told for key, told in field.items() if key in KEPT}, "enum": names + [None] * nullable}


def _text_only(schemas: Schema) -> Schema:
    """Without what only pictures, sounds and files have, and the parts, items and tools that are nothing else."""
    reached = _reached([schemas[name]["properties"].get(field) for name in schemas for field in CHAT_PARTS
                        if name.endswith("Request")], schemas)  # fmt: skip
    kept, refused = dict(schemas), set()
    for name in reached:
        fields = {key: dict(told) for key, told in schemas[name].get("properties", {}).items()}
        kinds = fields.get("type", {})
        listed = kinds.get("enum", [kinds["const"]] if "const" in kinds else [])
        if (listed and not TEXT & set(listed)) or set(MEDIA_FIELDS) & set(schemas[name].get("required", ())):
            refused.add(PREFIX + name)
        elif fields:
            fields = {key: told for key, told in fields.items() if key not in MEDIA_FIELDS}
            if "enum" in kinds:
                fields["type"]["enum"] = [kind for kind in listed if kind in TEXT]
            kept[name] = {**schemas[name], "properties": fields}
    return {name: _without(schema, refused) for name, schema in kept.items()}


def _without(value: Any, refused: set[str]) -> Any:  # noqa: ANN401 - a schema or a part of one
    """A schema whose unions lack the refused ones, where something is left of them."""
    if isinstance(value, list):
        return [_without(inner, refused) for inner in value]
    if not isinstance(value, dict):
        return value
    # Members with an underscore are vLLM's own, which the rules refuse.
    found = {key: _without(inner, refused) for key, inner in value.items() if key != "discriminator" and key[:1] != "_"}
    for union in ("anyOf", "oneOf"):
        if left := [kind for kind in found.get(union, ()) if kind.get("$ref") not in refused]:
            found[union] = left
    return found


def _references(value: object) -> Iterator[str]:
    """Names of the schemas that are referred to anywhere within a value."""
    if isinstance(value, dict):
        named = value.get("$ref")
        if isinstance(named, str) and named.startswith(PREFIX):
            yield named.removeprefix(PREFIX)
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _reached(paths: object, schemas: Schema) -> list[str]:
    """Names of the schemas that are referred to from there, directly and through others."""
    reached: set[str] = set()
    ahead = set(_references(paths))
    while ahead:
        reached |= ahead
        ahead = {name for known in ahead for name in _references(schemas[known])} - reached
    return sorted(reached)
