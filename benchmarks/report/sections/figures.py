# SPDX-License-Identifier: Apache-2.0
"""Any result's figures as a table, with their spread, and what they mean."""

from collections.abc import Mapping

from aerie.benchmarks.report import meanings
from aerie.benchmarks.report.document import Block, Folded, Table
from aerie.benchmarks.report.sections.findings import Findings, plain
from aerie.benchmarks.results_file import ResultFile

MANY = 40
"""Rows above which a table is folded."""
BETTER = {"up": "higher", "down": "lower", None: "–"}


def findings(result: ResultFile) -> Findings:
    """Of a result that no other module knows: its first figures in a sentence, all in the table."""
    shown = [name for name in result.figures if not meanings.is_spread(name) and name != "complete"]
    said = [f"`{name}` is **{plain(result.figures[name])}{_spread(result.figures, name)}**" for name in shown[:3]]
    return Findings(["; ".join(said) + "."] if said else [], [])


def tables(result: ResultFile) -> list[Block]:
    """All figures; and what their names mean."""
    figures = result.figures
    rows = [
        [f"`{name}`", plain(value, 4), plain(figures[f"{name}_std"], 3) if f"{name}_std" in figures else "–"]
        for name, value in figures.items()
        if not (name.endswith("_std") and name.removesuffix("_std") in figures)
    ]
    table = Table(["figure", "value", "±"], rows)
    known = meanings.of(figures)
    explained = Table(
        ["figures", "meaning", "better"],
        [[", ".join(f"`{name}`" for name in _examples(figures, one)), one.text, BETTER[one.better]] for one in known],
        words=3,
    )
    return [
        Folded(f"All {len(rows)} figures", [table]) if len(rows) > MANY else table,
        *([Folded("What the figures mean", [explained])] if known else []),
    ]


def _examples(figures: Mapping[str, float], one: meanings.Meaning) -> list[str]:
    own = [name for name in figures if meanings.meaning(name) is one]
    return own[:2] + ["…"] * (len(own) > 2)


def _spread(figures: Mapping[str, float], name: str) -> str:
    std = figures.get(f"{name}_std")
    return "" if std is None else f" ± {plain(std, 2)}"


def incomplete(figures: Mapping[str, float]) -> bool:
    """Whether a run says of itself that it was cut short."""
    return figures.get("complete") == 0
