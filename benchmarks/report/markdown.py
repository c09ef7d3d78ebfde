# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown; its pictures are files beside it."""

from collections.abc import Callable, Sequence

from aerie.benchmarks.report.document import Block, Bullets, Document, Folded, Paragraph, Section, Table, pictures
from aerie.chart import draw

Link = Callable[[str], str]
"""The target of a picture, from its name."""


def render(document: Document, link: Link) -> str:
    """The page."""
    lines = [f"# {document.title}", "", *(f"{sentence}\n" for sentence in document.summary)]
    return "\n".join([*lines, *(section(one, link) for one in document.sections)])


def section(one: Section, link: Link, level: int = 2) -> str:
    """A section, with its heading."""
    return "\n".join([f"{'#' * level} {one.title}", "", body(one.blocks, link)])


def body(blocks: Sequence[Block], link: Link) -> str:
    """Blocks, each followed by an empty line."""
    return "\n".join(_block(block, link) for block in blocks)


def _block(block: Block, link: Link) -> str:
    if isinstance(block, Paragraph):
        return f"{block.text}\n"
    if isinstance(block, Bullets):
        return "".join(f"- {item}\n" for item in block.items)
    if isinstance(block, Table):
        return table(block)
    if isinstance(block, Folded):
        return f"<details><summary>{block.title}</summary>\n\n{body(block.blocks, link)}\n</details>\n"
    return f"![{block.alt}]({link(block.name)})\n"


def table(block: Table) -> str:
    """A table; a bar in a cell would end it."""
    rule = "| --- " * block.words + "| ---: " * (len(block.head) - block.words) + "|"
    rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in [block.head, *block.rows]]
    return "\n".join([rows[0], rule, *rows[1:], ""])


def drawn(sections: Sequence[Section]) -> dict[str, str]:
    """The pictures as SVG, by name."""
    return {one.name: draw(one.panels) for section in sections for one in pictures(section.blocks)}
