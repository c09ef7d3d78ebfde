# SPDX-License-Identifier: Apache-2.0
"""One run of the benchmark: points in order, each within its share of the time, none lost when one fails or all end."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aerie.benchmarks.kernels.gpu.linear import OURS, refusal
from aerie.benchmarks.kernels.timing import Budget, Timer
from aerie.benchmarks.points import Record, number

Measure = Callable[[Budget], Iterable[Record]]


@dataclass
class Session:
    """What a run has to spend, and what it has seen."""

    timer: Timer
    budget: Budget
    rounds: int
    points: int = 0
    """That are still to come."""
    advance: Callable[[str], None] = lambda name: None
    """Told the name of each point that is done."""
    records: list[Record] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def point(self, name: str, measure: Measure, way: str = OURS) -> None:
        """Measure a point, unless the time is spent. One that fails is noted with its reason, and the next is due."""
        share = self.budget.share(max(self.points, 1))
        self.points -= 1
        if self.budget.left() <= 0:
            self.skipped.append(name)
        else:
            try:
                self.records += measure(share)
            except Exception as reason:
                self.records.append(refusal(name, way, reason))
        self.advance(name)

    def wrong(self) -> list[str]:
        """Where ours was refused."""
        refused = [record for record in self.records if record["kind"] == "refused" and record["way"] == OURS]
        return list(dict.fromkeys(str(record["case"]) for record in refused))

    def refusals(self) -> list[str]:
        """What could not be measured and why, one line a reason."""
        cases: dict[tuple[str, str], list[str]] = {}
        for record in self.records:
            if record["kind"] == "refused":
                cases.setdefault((str(record["way"]), str(record["reason"])), []).append(str(record["case"]))
        return [f"{way} at {', '.join(dict.fromkeys(at))}: {reason}" for (way, reason), at in cases.items()]

    def fewer_rounds(self) -> list[str]:
        """Points that the time cut short."""
        names = []
        for record in self.records:
            if record["kind"] == "time" and isinstance(record["us"], list) and len(record["us"]) < self.rounds:
                names.append(f"{record['case']}_m{record['rows']}")
            if record["kind"] == "draft" and "rounds" in record and number(record, "rounds") < self.rounds:
                names.append(f"draft_{record['part']}_t{record['tokens']}")
        return list(dict.fromkeys(names))

    def end(self, interrupted: bool = False) -> Record:
        """The last record: whether it is whole, and what was cut to keep to the time."""
        return {
            "kind": "end",
            "complete": not (interrupted or self.skipped or self.wrong()),
            "interrupted": interrupted,
            "seconds": round(self.budget.spent(), 1),
            "budget_seconds": self.budget.seconds,
            "skipped": list(self.skipped),
            "fewer_rounds": list(self.fewer_rounds()),
        }
