# SPDX-License-Identifier: Apache-2.0
"""Which cut is the fastest for a layer and a bucket of M, and the table that says so; never at serving time.

All M of the first bucket share a cut, so a cut is judged by the time of all of them together.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import inf

import torch
from pydantic import JsonValue, TypeAdapter

from aerie.benchmarks.kernels.draft_step import TOLERANCE
from aerie.benchmarks.kernels.draft_step_parts import relative_error
from aerie.benchmarks.kernels.gpu import ways
from aerie.benchmarks.kernels.gpu.linear import refusal
from aerie.benchmarks.kernels.gpu.shapes import GROUP_SIZE, ROWS, Shape
from aerie.benchmarks.kernels.gpu.ways import Weight
from aerie.benchmarks.kernels.timing import LEAST_ROUNDS, Budget, Timer, interleaved
from aerie.benchmarks.points import Record, number
from aerie.kernels.int4_gemm.pack import STEP, pack
from aerie.kernels.int4_gemm.tuning import Cut, Table, bucket

TILES = ((64, 4, 3), (64, 4, 4), (128, 4, 3), (128, 4, 4), (128, 8, 2), (128, 8, 3))
"""Rows of the weight for a program, its warps, its stages."""
SPLITS = (1, 2, 4, 8, 16)
PROGRAMS = (0.25, 2.0)
"""Least and most programs, as shares of those that run at a time."""
INT4_PEERS = ("marlin", "machete")
HOPPER = "9.0"


def candidates(shape: Shape, greatest: int, programs: int) -> list[Cut]:
    """Cuts worth a try in the bucket of up to `greatest` rows, on a GPU that runs so many programs at a time."""
    found = []
    for tile_n, warps, stages in TILES:
        for splits in SPLITS:
            at_a_time = -(-shape.outputs // tile_n) * splits / programs
            # A split of a single step would spend its time on its start and its end.
            fits = splits == 1 or splits <= -(-shape.inputs // STEP) // 2
            if fits and (PROGRAMS[0] <= at_a_time <= PROGRAMS[1] or splits == 1):
                found.append(Cut(tile_n, greatest, splits, warps, stages))
    return found


def search(
    shape: Shape, greatest: int, cuts: Sequence[Cut], timer: Timer, budget: Budget, weight: Weight, copies: int
) -> Iterator[Record]:
    """A `cut` record for each that computes what it should: microseconds, added up over the rows of the bucket."""
    rows = [count for count in ROWS if bucket(count) == str(greatest)]
    x_MK = torch.randn(max(rows), shape.inputs, dtype=weight.dtype, device=weight.q_NK.device)
    exact_MN = weight.exact(x_MK)
    packed = pack(weight.q_NK, weight.scale_NG, group_size=GROUP_SIZE)
    stored = list(ways.ours(weight).copies(copies))
    for cut in cuts:
        if budget.left() <= 0:
            return
        call = ways.multiply(packed, {str(greatest): cut})
        here = [replace(one, call=call) for one in stored]
        try:
            error = relative_error(here[0](x_MK), exact_MN)
            if not error <= TOLERANCE[weight.dtype]:
                raise ArithmeticError(f"relative error {error:.2g}")
            calls = {str(count): [partial(one, x_MK[:count]) for one in here] for count in rows}
            found = interleaved(calls, timer, LEAST_ROUNDS)
        except Exception as reason:  # such as a cut for which a multiprocessor has no room
            yield refusal(shape.name, f"cut of {greatest} rows: {cut}", reason)
            continue
        us = sum(statistics.median(times) for times in found.values())
        yield {"kind": "cut", "case": shape.name, "bucket": str(greatest), "cut": asdict(cut), "us": round(us, 4)}


def best(records: Iterable[Record], shape: Shape) -> dict[str, Cut]:
    """By bucket the fastest cut that was found for a layer."""
    fastest: dict[str, tuple[float, Cut]] = {}
    for record in records:
        if record["kind"] == "cut" and record["case"] == shape.name:
            at, cut = str(record["bucket"]), TypeAdapter(Cut).validate_python(record["cut"])
            fastest[at] = min(fastest.get(at, (inf, cut)), (number(record, "us"), cut), key=lambda one: one[0])
    return {at: cut for at, (_, cut) in fastest.items()}


def entries(records: Sequence[Record], shapes: Sequence[Shape], known: Table) -> list[JsonValue]:
    """What the table says of layers: those that were searched, and others as it said before."""
    cuts = dict(known.shapes)
    for shape in shapes:
        for greatest, cut in best(records, shape).items():
            cuts[greatest, shape.outputs, shape.inputs, GROUP_SIZE] = cut
    return [{"m": m, "n": n, "k": k, "group": group, "cut": asdict(cut)} for (m, n, k, group), cut in cuts.items()]


def ahead(figures: Mapping[str, float], shapes: Sequence[Shape], capability: str, result: str) -> list[JsonValue]:
    """Layers at which ours is at least as fast as each INT4 kernel that vLLM would choose, at every M.

    Those are Marlin, and on Hopper Machete too; where one of them was not measured, nothing is said.
    """
    rivals = INT4_PEERS if capability == HOPPER else INT4_PEERS[:1]
    return [
        {"n": shape.outputs, "k": shape.inputs, "group": GROUP_SIZE, "result": result}
        for shape in shapes
        if all(figures.get(f"{peer}_ratio_{shape.name}_m{rows}", 0.0) >= 1.0 for peer in rivals for rows in ROWS)
    ]


def table(known: Table, shapes: list[JsonValue], ahead: list[JsonValue], gpu: str, result: str) -> dict[str, JsonValue]:
    """The GPU's table: what was measured, and for other layers the cuts by bucket as they were."""
    return {
        "measured": True,
        "note": f"`shapes` were timed on {gpu} by `aerie bench kernels --tune`, benchmarks/results/{result}; programs "
        "and buckets were not.",
        "programs": known.programs,
        "buckets": {name: asdict(cut) for name, cut in known.buckets.items()},
        "shapes": shapes,
        "ahead": ahead,
    }
