# SPDX-License-Identifier: Apache-2.0
"""Linear layers: first whether each way is right, then how long it takes.

Records: `error` of a way at each number of rows, `refused` for a way that cannot be called or is wrong, with the reason
and never left out, and `time`, the microseconds of each round.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.kernels.draft_step import TOLERANCE
from aerie.benchmarks.kernels.draft_step_parts import relative_error
from aerie.benchmarks.kernels.gpu import peers, ways
from aerie.benchmarks.kernels.gpu.shapes import Shape
from aerie.benchmarks.kernels.gpu.ways import Way, Weight
from aerie.benchmarks.kernels.timing import Budget, Call, Timer, interleaved
from aerie.benchmarks.points import Record

OURS = "ours"
Anything = TypeVar("Anything")
Build = Callable[[Weight], Way]
BUILDS: Mapping[str, Build] = {
    OURS: ways.ours,
    "cublas": ways.cublas,
    "marlin": peers.marlin,
    "machete": peers.machete,
}


def refusal(case: str, way: str, reason: object) -> Record:
    """The record of what could not be measured."""
    said = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
    return {"kind": "refused", "case": case, "way": way, "reason": said.strip().splitlines()[0]}


def check(
    shape: Shape, rows: Sequence[int], dtype: torch.dtype, device: str, builds: Mapping[str, Build] = BUILDS
) -> Iterator[Record]:
    """Every way's relative error against float64 at each number of rows; what fails or is wrong is refused."""
    weight = Weight.random(shape, dtype, device)
    x_MK = torch.randn(max(rows), shape.inputs, dtype=dtype, device=device)
    exact_MN = weight.exact(x_MK)
    for name, build in builds.items():
        yield from judged(shape.name, name, dtype, rows, partial(build, weight), [x_MK], exact_MN)


def judged(
    case: str,
    name: str,
    dtype: torch.dtype,
    rows: Sequence[int],
    build: Callable[[], Way],
    inputs: Sequence[Tensor],
    exact: Tensor,
) -> Iterator[Record]:
    """The records of one way on the first rows of its inputs.

    Whatever another's kernel raises is its reason, and the end of it alone.
    """
    try:
        way = build()
        errors = [relative_error(way(*(one[:count] for one in inputs)), exact[:count]) for count in rows]
    except Exception as reason:
        yield refusal(case, name, reason)
        return
    yield {
        "kind": "error",
        "case": case,
        "way": name,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": list(rows),
        "errors": [error if math.isfinite(error) else None for error in errors],  # JSON has no other
    }
    found = zip(rows, errors, strict=True)
    wrong = [f"{error:.2g} at {count} rows" for count, error in found if not error <= TOLERANCE[dtype]]
    if wrong:
        yield refusal(case, name, f"relative error in {dtype}: {', '.join(wrong)}")


def build_all(
    case: str, weight: Anything, builds: Mapping[str, Callable[[Anything], Way]]
) -> tuple[dict[str, Way], list[Record]]:
    """Every way, and the records of those that are refused because they cannot be built. Raises what ours raises."""
    built: dict[str, Way] = {}
    refused: list[Record] = []
    for name, build in builds.items():
        try:
            built[name] = build(weight)
        except Exception as reason:
            if name == OURS:
                raise
            refused.append(refusal(case, name, reason))
    return built, refused


class Prepared:
    """A layer in as many copies as it takes, for every way.

    Raises:
        MemoryError: not enough of them fit.
    """

    def __init__(self, shape: Shape, builds: Mapping[str, Build], device: str, free: int, cache: int) -> None:
        self.shape, self.device = shape, device
        weight = Weight.random(shape, torch.bfloat16, device)
        built, self.refused = build_all(shape.name, weight, builds)
        del weight
        self.count = ways.copies_that_fit(sum(way.bytes for way in built.values()), free)
        if not ways.past_the_cache(self.count, built[OURS].bytes, cache):
            raise MemoryError(f"memory has room for {self.count} copies, which the cache may keep")
        self.copies = {name: list(way.copies(self.count)) for name, way in built.items()}

    def time(self, rows: int, timer: Timer, rounds: int, budget: Budget | None) -> list[Record]:
        """A record of each way, all on the same x, which is in the cache as what one layer leaves to the next is."""
        x_MK = torch.randn(rows, self.shape.inputs, dtype=torch.bfloat16, device=self.device)
        calls = {name: [partial(copy, x_MK) for copy in copies] for name, copies in self.copies.items()}
        point: Record = {"case": self.shape.name, "rows": rows, "copies": self.count}
        return timed(point | {"bytes": self.shape.moved_bytes(rows)}, calls, timer, rounds, budget)


def timed(
    point: Record, calls: Mapping[str, Sequence[Call]], timer: Timer, rounds: int, budget: Budget | None
) -> list[Record]:
    """The records of a point: every round of every way. Raises what ours raises; what another raises is its reason."""
    refused: dict[str, Exception] = {}
    found = interleaved(calls, timer, rounds, budget, refused)
    if OURS in refused:
        raise refused[OURS]
    records = [refusal(f"{point['case']}_m{point['rows']}", way, reason) for way, reason in refused.items()]
    return records + [
        {"kind": "time", **point, "way": way, "us": [round(one, 4) for one in values]} for way, values in found.items()
    ]


def admitted(case: str, builds: Mapping[str, Anything], records: Iterable[Record]) -> dict[str, Anything]:
    """The ways that no record refuses at a case.

    Raises:
        BenchmarkError: ours is refused, and there is nothing to time.
    """
    refused = {record["way"] for record in records if record["kind"] == "refused" and record["case"] == case}
    if OURS in refused:
        raise BenchmarkError(f"{case} failed its check, and is not timed")
    return {name: build for name, build in builds.items() if name not in refused}
