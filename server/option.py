# SPDX-License-Identifier: Apache-2.0
"""How an option of `aerie serve` is declared, for every file of the schema."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic.config import JsonDict

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
SUFFIXES = {"k": 10**3, "K": 1 << 10, "m": 10**6, "M": 1 << 20}


def tokens(value: object) -> object:
    """A number of tokens as vLLM takes it: `32k` is 32,000 and `32K` 32,768; `auto` and -1 leave it open."""
    if value in ("auto", "-1", -1):
        return None
    if isinstance(value, str) and value[:-1].isdecimal() and value[-1] in SUFFIXES:
        return int(value[:-1]) * SUFFIXES[value[-1]]
    return value


Tokens = Annotated[int | None, BeforeValidator(tokens)]


def option(  # `Any` as pydantic's Field has it: the value stands where a field's default of any type stands
    group: str,
    default: Any,  # noqa: ANN401
    help_text: str,
    *,
    default_text: str | None = None,
    **constraints: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """A field of the schema with its help, the group it is listed under and, for `None`, what the default means."""
    extra: JsonDict = {"group": group, "default_text": default_text}
    return Field(default, description=help_text, json_schema_extra=extra, **constraints)
