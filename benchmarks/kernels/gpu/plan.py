# SPDX-License-Identifier: Apache-2.0
"""What is to be measured, in order: each point a name and what measures it, which nobody has called yet.

Listing the points touches no GPU. Copies of a layer live as long as its points are being measured.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product

import torch

from aerie.benchmarks.kernels import draft_step
from aerie.benchmarks.kernels.draft_step_parts import Sizes, Step
from aerie.benchmarks.kernels.gpu import experts, linear, machine, tune, ways
from aerie.benchmarks.kernels.gpu.session import Measure, Session
from aerie.benchmarks.kernels.gpu.shapes import QWEN3_235B, ROWS, SHAPES, Shape
from aerie.benchmarks.kernels.gpu.ways import Weight
from aerie.benchmarks.kernels.timing import Budget, Timer, copy_bandwidth
from aerie.benchmarks.points import Record
from aerie.kernels.int4_gemm.tuning import BUCKETS, Table

Point = tuple[str, Measure]
DTYPES = tuple(draft_step.TOLERANCE)
DRAFT = Sizes()
PARTS = ("prologue", "gate_elementwise", "gate_headwise", "head")


def memory() -> tuple[int, int]:
    """Free bytes, once what is no longer needed has been given back, and those of the second-level cache."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0], torch.cuda.get_device_properties().L2_cache_size


@dataclass(frozen=True)
class Searched:
    """The search for cuts, in a time of its own."""

    known: Table
    budget: Budget
    device: str

    def search(self, shape: Shape, greatest: int, timer: Timer, left: int, _: Budget) -> Iterable[Record]:
        """One layer and bucket; `left` searches share the time that there still is."""
        weight = Weight.random(shape, torch.bfloat16, self.device)
        copies = ways.copies_that_fit(weight.q_NK.nbytes, memory()[0])
        cuts = tune.candidates(shape, greatest, self.known.programs)
        return tune.search(shape, greatest, cuts, timer, self.budget.share(left), weight, copies)

    def points(self, session: Session) -> Iterator[Point]:
        """A point for each layer and bucket of M."""
        every = list(product(SHAPES, BUCKETS))
        for at, (shape, greatest) in enumerate(every):
            name = f"cuts of {shape.name}, {greatest} rows"
            yield name, partial(self.search, shape, greatest, session.timer, len(every) - at)


def plan(session: Session, device: str, clock_mhz: float | None, searched: Searched | None = None) -> Iterator[Point]:
    """All points: roofs, checks, the search for cuts where one is asked for, times."""
    yield "copy", partial(_copy, session, device)
    if clock_mhz is not None:
        yield "issue_roof", partial(_issue_roofs, clock_mhz)
    for dtype in DTYPES:
        yield from _checks(dtype, device)
    if searched is not None:
        yield from searched.points(session)
    for shape in SHAPES:
        yield from _times(shape.name, cache(partial(_prepare_linear, shape, session, device)), session)
    yield from _times(QWEN3_235B.name, cache(partial(_prepare_experts, session, device)), session)
    for tokens in ROWS:
        yield from _draft_times(tokens, session, device)


def _checks(dtype: torch.dtype, device: str) -> Iterator[Point]:
    for shape in SHAPES:
        yield shape.name, partial(_check_linear, shape, dtype, device)
    yield QWEN3_235B.name, partial(_check_experts, dtype, device)
    for tokens in ROWS:
        step = cache(partial(Step, DRAFT, tokens, dtype, device))
        for part in PARTS:
            yield f"draft_{part}", partial(_check_draft, step, part, tokens, dtype)


def _times(case: str, layer: Callable[[], linear.Prepared | experts.Prepared], session: Session) -> Iterator[Point]:
    for rows in ROWS:
        yield f"{case}_m{rows}", partial(_time, layer, rows, session)


def _draft_times(tokens: int, session: Session, device: str) -> Iterator[Point]:
    step = cache(partial(Step, DRAFT, tokens, torch.bfloat16, device))
    for part in PARTS:
        yield f"draft_{part}_t{tokens}", partial(_time_draft, step, part, tokens, session)


def _copy(session: Session, device: str, _: Budget) -> Iterable[Record]:
    return [{"kind": "copy", **copy_bandwidth(session.timer, session.rounds, device)}]


def _issue_roofs(clock_mhz: float, _: Budget) -> Iterable[Record]:
    return machine.issue_roofs(clock_mhz)


def _check_linear(shape: Shape, dtype: torch.dtype, device: str, _: Budget) -> Iterable[Record]:
    return linear.check(shape, ROWS, dtype, device)


def _check_experts(dtype: torch.dtype, device: str, _: Budget) -> Iterable[Record]:
    return experts.check(QWEN3_235B, ROWS, dtype, device)


def _check_draft(step: Callable[[], Step], part: str, tokens: int, dtype: torch.dtype, _: Budget) -> Iterable[Record]:
    make = dict(step().parts())[part]
    return [{"kind": "draft", **draft_step.part_error(part, make, tokens, dtype)}]


def _prepare_linear(shape: Shape, session: Session, device: str) -> linear.Prepared:
    ours: linear.Build = partial(ways.ours, cuts=tune.best(session.records, shape))
    admitted = linear.admitted(shape.name, {**linear.BUILDS, linear.OURS: ours}, session.records)
    prepared = linear.Prepared(shape, admitted, device, *memory())
    session.records += prepared.refused
    return prepared


def _prepare_experts(session: Session, device: str) -> experts.Prepared:
    admitted = linear.admitted(QWEN3_235B.name, experts.BUILDS, session.records)
    prepared = experts.Prepared(QWEN3_235B, admitted, device, memory()[0])
    session.records += prepared.refused
    return prepared


def _time(
    layer: Callable[[], linear.Prepared | experts.Prepared], rows: int, session: Session, budget: Budget
) -> Iterable[Record]:
    return layer().time(rows, session.timer, session.rounds, budget)


def _time_draft(step: Callable[[], Step], part: str, tokens: int, session: Session, budget: Budget) -> Iterable[Record]:
    linear.admitted(f"draft_{part}", {}, session.records)
    make = dict(step().parts())[part]
    return [{"kind": "draft", **draft_step.measure_part(part, make, tokens, session.timer, session.rounds, budget)}]
