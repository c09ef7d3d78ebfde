# SPDX-License-Identifier: Apache-2.0
"""The entries of a request's lists, each held against vLLM's own model of it.

vLLM validates a list at once: a thousand entries of a wrong form become hundreds of thousands of errors, which take
its event loop seconds. Here the first wrong one ends it, beside the loop where the body is large.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aerie.server.refusals import BadRequest
from aerie.server.rules.facts import Facts


def check_items(body: dict[str, Any], route: str, facts: Facts) -> None:
    """Hold every entry of the lists that a route has models for against its model.

    Raises:
        BadRequest: the path of the first wrong entry, and what is wrong with it.
    """
    for name, adapter in facts.items.get(route, {}).items():
        entries = body.get(name)
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            try:
                adapter.validate_python(entry)
            except ValidationError as error:
                errors = error.errors(include_url=False, include_context=False, include_input=False)
                where, reason = _nearest(errors, f"{name}[{index}]")
                raise BadRequest(where, f"{where}: {reason}.", "invalid_value") from None


def _distance(errors: list[ErrorDetails]) -> tuple[bool, int]:
    """Of an entry from a model: first whether it is one of another type at all."""
    return any(error["loc"][-1:] == ("type",) for error in errors), len(errors)


def _nearest(errors: Iterable[ErrorDetails], path: str) -> tuple[str, str]:
    """The error of the model that the entry comes nearest to: pydantic has those of every model of a union."""
    by_model: dict[object, list[ErrorDetails]] = {}
    for error in errors:
        by_model.setdefault(error["loc"][:1], []).append(error)
    error = min(by_model.values(), key=_distance)[0]
    for step in error["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.isidentifier() and step[:1].islower():  # the names of models and of their validators are no path
            path += f".{step}"
    return path, error["msg"].rstrip(".")
