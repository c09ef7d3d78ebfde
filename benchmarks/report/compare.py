# SPDX-License-Identifier: Apache-2.0
"""`aerie bench compare A B`: which figures differ by more than their spread, and which way.

A figure's spread is its `_std`, or else the standard deviation over rounds of the run's own field. Two values differ
beyond the spread when value ± 2 spreads of the one and the other do not overlap. Two, because of three rounds with
nothing changed, one figure in 25 would look worse by a single spread, and one in 200 by two. What is counted, not
measured, such as instructions, has none: any difference is one. Figures without a known spread are shown, not judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue
from rich.console import Console
from rich.table import Column, Table

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.report import meanings
from aerie.benchmarks.report.cells import spreads
from aerie.benchmarks.report.sections.findings import plain
from aerie.benchmarks.results_file import ResultFile

Verdict = Literal["better", "worse", "changed", "within", "unknown"]
SPREADS = 2.0
"""How many spreads around each value."""
ORDER: tuple[Verdict, ...] = ("worse", "better", "changed", "unknown", "within")
SAID: dict[Verdict, str] = {
    "better": "better", "worse": "worse", "changed": "differs", "within": "within the spread",
    "unknown": "no spread known",
}  # fmt: skip
COLOURS: dict[Verdict, str] = {
    "better": "green",
    "worse": "red",
    "changed": "yellow",
    "within": "dim",
    "unknown": "dim",
}


class NotComparableError(BenchmarkError):
    """Two results that say nothing about each other."""


@dataclass(frozen=True)
class Change:
    """One figure in both."""

    name: str
    before: float
    after: float
    margin: float | None
    """How far apart they may be by chance; None where either's spread is unknown."""
    better: meanings.Better | None

    @property
    def verdict(self) -> Verdict:
        """`changed` where neither way is better."""
        if self.before == self.after:
            return "within"
        if self.margin is None:
            return "unknown"
        if abs(self.after - self.before) <= self.margin:
            return "within"
        if self.better is None:
            return "changed"
        return "better" if (self.after > self.before) == (self.better == "up") else "worse"


def check(before: ResultFile, after: ResultFile, anyway: bool = False) -> list[str]:
    """Refuse what cannot be compared; returns what else differs, and with `anyway` what would have been refused.

    Raises:
        NotComparableError: other benchmarks, or, without `anyway`, another machine or other inputs.
    """
    ran, runs = ({run.benchmark for run in one.runs} for one in (before, after))
    if ran != runs:
        raise NotComparableError(f"they measured different things: {_names(ran)} against {_names(runs)}")
    notes = []
    for what, difference in (
        ("machine", differing(before.provenance.machine, after.provenance.machine)),
        ("inputs", differing(before.provenance.inputs, after.provenance.inputs)),
    ):
        if difference and not anyway:
            raise NotComparableError(f"their {what} differ: {difference}; --anyway compares them all the same")
        if difference:
            notes.append(f"{what} differ: {difference}")
    for what, difference in (
        ("versions", differing(before.provenance.versions, after.provenance.versions)),
        ("arguments", differing(before.provenance.arguments, after.provenance.arguments)),
    ):
        if difference:
            notes.append(f"{what} differ: {difference}")
    if before.provenance.seeds != after.provenance.seeds:
        notes.append(f"seeds differ: {before.provenance.seeds} against {after.provenance.seeds}")
    notes += [
        f"{side} was cut short" for side, one in (("A", before), ("B", after)) if one.figures.get("complete") == 0
    ]
    return notes


def _names(benchmarks: set[str]) -> str:
    return ", ".join(sorted(benchmarks))


def differing(
    before: Mapping[str, JsonValue] | Mapping[str, str], after: Mapping[str, JsonValue] | Mapping[str, str]
) -> str:
    """What two maps disagree on, in words; empty where they agree."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    said = [f"{name} {_short(before.get(name))} against {_short(after.get(name))}" for name in names]
    return "; ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _short(value: JsonValue) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 32 else f"{text[:12]}…"


def changes(before: ResultFile, after: ResultFile, spreads_each: float = SPREADS) -> list[Change]:
    """Every figure that both have, those that tell a spread left out."""
    known = [spreads(one) for one in (before, after)]
    found = []
    for name, value in before.figures.items():
        if meanings.is_spread(name) or name not in after.figures:
            continue
        meaning = meanings.meaning(name)
        sides = [_spread(name, one, rounds) for one, rounds in zip((before, after), known, strict=True)]
        whole = None if None in sides else spreads_each * sum(one for one in sides if one is not None)
        if meaning is not None and meaning.exact:
            whole = 0.0
        found.append(Change(name, value, after.figures[name], whole, None if meaning is None else meaning.better))
    return found


def _spread(name: str, result: ResultFile, rounds: Mapping[str, float]) -> float | None:
    return result.figures.get(f"{name}_std", rounds.get(name))


def show(
    found: Sequence[Change], notes: Sequence[str], before: ResultFile, after: ResultFile, *, everything: bool
) -> None:
    """What differs, as a table; below it what stands in one file alone, and what to keep in mind."""
    console = Console()
    shown = [one for one in found if everything or one.verdict != "within"]
    table = Table(Column("figure", overflow="fold"), "A", "B", "change", "by chance", Column(no_wrap=True))
    for one in sorted(shown, key=lambda one: ORDER.index(one.verdict)):
        change = f"{one.after / one.before - 1:+.1%}" if one.before else "–"
        cells = (one.name, plain(one.before, 4), plain(one.after, 4), change, plain(one.margin, 2))
        table.add_row(*cells, f"[{COLOURS[one.verdict]}]{SAID[one.verdict]}[/]")
    if shown:
        console.print(table)
    counted = {verdict: sum(one.verdict == verdict for one in found) for verdict in ORDER}
    said = ", ".join(f"{count} {SAID[verdict]}" for verdict, count in counted.items() if count)
    console.print(f"{len(found)} figures in both: {said or 'none'}.", highlight=False)
    for side, alone in (
        ("A", before.figures.keys() - after.figures.keys()),
        ("B", after.figures.keys() - before.figures.keys()),
    ):
        names = sorted(name for name in alone if not meanings.is_spread(name))
        if names:
            console.print(f"only in {side}: {', '.join(names)}", highlight=False, markup=False)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def run(before: ResultFile, after: ResultFile, *, anyway: bool, everything: bool, spreads_each: float = SPREADS) -> int:
    """Compare and show; 1 when any figure is worse beyond its spread, else 0.

    Raises:
        NotComparableError: the files say nothing about each other, or share no figure.
    """
    notes = check(before, after, anyway)
    found = changes(before, after, spreads_each)
    if not found:
        raise NotComparableError("they have no figure in common")
    show(found, notes, before, after, everything=everything)
    return int(any(one.verdict == "worse" for one in found))
