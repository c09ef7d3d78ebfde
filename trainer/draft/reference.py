# SPDX-License-Identifier: Apache-2.0
"""A draft recipe's settings as people read them: the tables in docs/draft-training.md, made of the schema.

`python -m aerie.trainer.draft.reference docs/draft-training.md` writes them between the two markers of that page.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aerie.artefacts import write_atomic
from aerie.trainer.draft.recipe import DraftRecipe

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def schemas(schema: type[BaseModel] = DraftRecipe, name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The schema and all that its fields hold, each with the dotted key that leads to it, parents first, once."""
    seen = set[type[BaseModel]]()

    def walk(schema: type[BaseModel], name: str) -> Iterator[tuple[str, type[BaseModel]]]:
        if schema not in seen:
            seen.add(schema)
            yield name, schema
            for key, field in schema.model_fields.items():
                for inner in _nested(field):
                    yield from walk(inner, f"{name}.{key}".lstrip("."))

    return walk(schema, name)


def markdown() -> str:
    """One table for each schema. A field that is itself a group of settings points to its table."""
    lines = list[str]()
    for name, schema in schemas():
        lines += ["", f"### {_title(name, schema)}", "", " ".join((schema.__doc__ or "").split()), ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        for key, field in schema.model_fields.items():
            cells = (f"`{key}`", _default(field), _meaning(field))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).strip() + "\n"


def rewrite(page: str) -> str:
    """The page with the tables between its markers brought up to date."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{markdown()}{END}{after}"


def _title(name: str, schema: type[BaseModel]) -> str:
    source = schema.model_fields.get("source")
    if source is not None:
        # Several fields hold prompts; which kind it is, `source` says.
        return f"`prompts`, `validation`, `served.prompts` with `source: {source.default}`"
    return f"`{name}`" if name else "The recipe"


def _nested(field: FieldInfo) -> list[type[BaseModel]]:
    """Schemas among what a field may hold."""
    found = [one for one in _flat(field.annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
    return sorted(found, key=lambda one: one.__name__)


def _flat(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 -- typing's forms have no common type
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _flat(argument)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    if isinstance(field.default, BaseModel):
        changed = field.default.model_dump(mode="json", exclude_unset=True)
        return (
            "`" + ", ".join(f"{key}: {value}" for key, value in changed.items()) + "`" if changed else "see its table"
        )
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{list(field.default) if isinstance(field.default, tuple) else field.default}`"


def _meaning(field: FieldInfo) -> str:
    choices = [one for one in _flat(field.annotation) if isinstance(one, str)]
    listed = f" One of {', '.join(choices)}." if len(choices) > 1 else ""
    return " ".join((field.description or "").split()) + listed


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_atomic(path, rewrite(path.read_text(encoding="utf-8")))
