# SPDX-License-Identifier: Apache-2.0
"""From the step times of `aerie bench cost` to what a row, a drafted token and a whole step cost."""

import statistics
from collections.abc import Sequence

from aerie.benchmarks.points import Record, number
from aerie.benchmarks.results_file import Run

TIMES = ("step_ms", "verify_ms", "draft_ms", "other_ms")


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of the least squares line."""
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    return intercept, slope


def figures(runs: Sequence[Run]) -> dict[str, float]:
    """docs/benchmarks.md defines them. All are medians over rounds, in ms but for the two ratios."""
    cells: dict[tuple[int, int], list[Record]] = {}
    for run in runs:
        one = run.measured
        cells.setdefault((int(number(one, "batch")), int(number(one, "draft_tokens"))), []).append(one)
    found: dict[str, float] = {}
    times = {cell: {name: _median(rounds, name) for name in TIMES} for cell, rounds in cells.items()}
    for (batch, k), each in times.items():
        cell = f"k{k}_c{batch}"
        found |= {f"{name}_{cell}": each[name] for name in TIMES}
        if k > 0:
            found[f"draft_share_{cell}"] = each["draft_ms"] / each["step_ms"]
        if k > 0 and (batch, 0) in times:
            found[f"break_even_{cell}"] = each["step_ms"] / without_draft(times[batch, 0])
    for batch in sorted({batch for batch, _ in times}):
        drafting = [(float(k), each["draft_ms"]) for (other, k), each in times.items() if other == batch and k > 0]
        if len(drafting) > 1:
            found[f"draft_token_ms_c{batch}"] = line(drafting)[1]
    rows = [(float(batch * (k + 1)), each["verify_ms"]) for (batch, k), each in times.items()]
    if len({row for row, _ in rows}) > 1:
        found["verify_base_ms"], found["verify_row_ms"] = line(rows)
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def without_draft(at_zero: dict[str, float]) -> float:
    """A step without drafting: at K = 0 the draft still makes a pass for its cache, which is no part of it.

    What the engine prepares for that pass is, so an engine that has no draft may be a little faster.
    """
    return at_zero["step_ms"] - at_zero["draft_ms"]


def _median(rounds: Sequence[Record], name: str) -> float:
    return statistics.median(number(one, name) for one in rounds)
