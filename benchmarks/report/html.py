# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML file: no script, nothing fetched, light and dark, for a desk and for a phone.

Each picture is in it twice, wide and narrow, and the width of the window says which is seen: a wide one that is scaled
down cannot be read on a phone.
"""

import re
from collections.abc import Sequence
from html import escape

from aerie.benchmarks.report.document import Block, Bullets, Document, Folded, Paragraph, Picture, Table
from aerie.chart import COLOURS, NARROW, WIDE, draw

ON_DARK = ("#4aa8e8", "#ff8a4c", "#2cc997", "#e3a0c6", "#8fd0f5", "#f2b84b", "#f0f3f6")
"""Okabe and Ito's colours, lighter, in their order."""

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1f2328; --soft: #59636e; --line: #d8dee4; --card: #f6f8fa;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --text: #e6edf3; --soft: #9198a1; --line: #30363d;
  --card: #161b22; --accent: #4aa8e8; } DARK }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p, ul { max-width: 44rem; }
.summary { background: var(--card); border-left: 4px solid var(--accent); border-radius: 6px; padding: .75rem 1.1rem; }
.summary p { margin: .35rem 0; font-size: 1.05rem; }
code { font: .875em ui-monospace, "DejaVu Sans Mono", Consolas, monospace; background: var(--card); padding: .1em .2em;
  border-radius: 4px; }
a { color: var(--accent); }
figure { margin: 1.25rem 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; padding: .5rem .9rem .7rem; border-top: 1px solid var(--line); }
svg text { fill: var(--text); } svg .sheet { fill: var(--page); } svg .rule { stroke: var(--line); }
svg .line.ink { stroke: var(--text); } svg .dot.ink { fill: var(--text); }
svg.narrow { display: none; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; }
td.words { white-space: normal; min-width: 8rem; max-width: 32rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
@media (max-width: 640px) { body { font-size: 15px; } svg.wide { display: none; } svg.narrow { display: block; }
  table { font-size: .82rem; } th, td { padding: .3rem .5rem; } }
"""


def render(document: Document) -> str:
    """The page."""
    dark = " ".join(
        f"svg .line.c{index} {{ stroke: {colour}; }} svg .dot.c{index} {{ fill: {colour}; }}"
        for index, colour in enumerate(ON_DARK[: len(COLOURS)])
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(document.title)}</title>",
        f"<style>{_STYLE.replace('DARK', dark)}</style></head><body>",
        f"<h1>{escape(document.title)}</h1>",
        '<div class="summary">',
        *(f"<p>{inline(sentence)}</p>" for sentence in document.summary),
        "</div>",
    ]
    for section in document.sections:
        parts += [f"<h2>{inline(section.title)}</h2>", *_blocks(section.blocks)]
    return "\n".join([*parts, "</body></html>", ""])


def inline(text: str) -> str:
    """Text with its code, bold and links; a link can only lead to a place nearby, never to a script."""
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", code)
    return re.sub(r"\[([^\]]+)\]\(([\w./#-]+)\)", r'<a href="\2">\1</a>', bold)


def _blocks(blocks: Sequence[Block]) -> list[str]:
    return [part for block in blocks for part in _block(block)]


def _block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        return [f"<p>{inline(block.text)}</p>"]
    if isinstance(block, Bullets):
        return ["<ul>", *(f"<li>{inline(item)}</li>" for item in block.items), "</ul>"]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Folded):
        return [f"<details><summary>{inline(block.title)}</summary>", *_blocks(block.blocks), "</details>"]
    return ["<figure>", *_picture(block), f"<figcaption>{inline(block.alt)}</figcaption>", "</figure>"]


def _picture(block: Picture) -> list[str]:
    both = ((draw(block.panels, sheet), name) for sheet, name in ((WIDE, "wide"), (NARROW, "narrow")))
    label = f'role="img" aria-label="{escape(block.alt, quote=True)}"'
    # Inline, an SVG needs no namespace: the page then has no address in it at all.
    return [
        svg.replace('<svg xmlns="http://www.w3.org/2000/svg"', f'<svg class="{name}" {label}', 1) for svg, name in both
    ]


def _table(block: Table) -> list[str]:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["words" if column < block.words else "number" for column in range(len(cells))]
        inner = (f'<{tag} class="{kind}">{inline(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    rows = [row(cells, "td") for cells in block.rows]
    return ['<div class="scroll"><table>', row(block.head, "th"), *rows, "</table></div>"]
