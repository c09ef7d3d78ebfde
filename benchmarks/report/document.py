# SPDX-License-Identifier: Apache-2.0
"""What a report says, before it is a page: sections of paragraphs, tables, and pictures.

Text knows `code`, **bold** and [links](target), as Markdown writes them; nothing else is markup in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from aerie.chart import Bars, Lines


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Remarks, one an entry."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows below a head; all columns but the first `words` hold numbers, and stand right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


@dataclass(frozen=True)
class Picture:
    """Panels below each other, and what they show in words."""

    name: str
    """Lower-case, for the file's name; distinct within a document."""
    alt: str
    panels: Sequence[Lines | Bars]


@dataclass(frozen=True)
class Folded:
    """What is shown when asked for."""

    title: str
    blocks: Sequence["Block"]


Block = Paragraph | Bullets | Table | Picture | Folded


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report; the summary comes first."""

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]


def pictures(blocks: Sequence[Block]) -> list[Picture]:
    """All pictures of some blocks, in order."""
    found: list[Picture] = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Folded):
            found += pictures(block.blocks)
    return found
