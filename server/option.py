# SPDX-License-Identifier: Apache-2.0
"""How an option of `aerie serve` is declared, for every file of the schema."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints
from pydantic.config import JsonDict

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


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
