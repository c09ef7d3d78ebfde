# SPDX-License-Identifier: Apache-2.0
"""The options as people read them: the rows behind `aerie serve --help` and the table in docs/operations.md.

`python -m aerie.server.reference docs/operations.md` writes the table between the two markers of that page.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from aerie.artefacts import write_atomic
from aerie.server.settings import choices, default_text, fields, flag, group, is_boolean, variable

BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"
METAVARS = {int: "N", float: "X", ByteSize: "SIZE"}
METAVAR_NAMES = {
    "engine_options": "JSON",
    "api_key_file": "FILE",
    "ssl_certfile": "FILE",
    "ssl_keyfile": "FILE",
    "ssl_password_file": "FILE",
    "ssl_ca_certs": "FILE",
    "dtype": "TYPE",
    "log_level": "LEVEL",
}


@dataclass(frozen=True)
class Row:
    """One option."""

    name: str
    group: str
    usage: str
    variable: str
    default: str
    text: str


def rows() -> list[Row]:
    """Every option of `aerie serve`, in the order of the schema."""
    return [
        Row(name, group(field), _usage(name, field), variable(name), default_text(field), _text(field))
        for name, field in fields().items()
    ]


def markdown() -> str:
    """The reference table."""
    lines: list[str] = []
    heading = None
    for row in rows():
        if row.group != heading:
            heading = row.group
            lines += [
                "",
                f"### {heading}",
                "",
                "| flag | variable | YAML key | default | meaning |",
                "|---|---|---|---|---|",
            ]
        cells = (f"`{row.usage}`", f"`{row.variable}`", f"`{row.name}`", row.default, row.text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).strip() + "\n"


def rewrite(page: str) -> str:
    """The page with the table between its markers brought up to date."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{markdown()}{END}{after}"


def _usage(name: str, field: FieldInfo) -> str:
    if is_boolean(field):
        return flag(name).replace("--", "--[no-]", 1)
    kinds = (field.annotation, *get_args(field.annotation))
    metavar = next((METAVARS[kind] for kind in kinds if kind in METAVARS), None)
    return f"{flag(name)} {metavar or METAVAR_NAMES.get(name, 'NAME')}"


def _text(field: FieldInfo) -> str:
    listed = choices(field)
    return f"{field.description}" + (f" One of {', '.join(listed)}." if listed else "")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_atomic(path, rewrite(path.read_text(encoding="utf-8")))
