# SPDX-License-Identifier: Apache-2.0
"""What the records of `aerie bench kernels` come to: a flat map of figures.

A case is a linear layer, `KxN`, or a mixture of experts, `moe_HxI_eE`. PEER is cublas, marlin or machete.

- `us_CASE_mM`, `_std`: our time at M rows, the median over rounds, and their standard deviation.
- `share_CASE_mM`: the bytes a call must move, over our time, over the bandwidth of a copy in the same run (`copy_gbs`).
- `PEER_ratio_CASE_mM`: **PEER's time over ours**; above 1 ours is faster. In each round both are replayed one after the
  other, and this is the median over rounds of their ratio.
- `PEER_ratio_min_mM` for 16 and 32: the least over the linear layers and every number of rows up to M.
- `PEER_ratio_m16`, `PEER_ratio_m32`: the geometric mean over the linear layers at exactly so many rows.
- `error_WAY`: the largest relative error, over shapes, rows and types; refused ways included.
- `issue_roof_mM`: what instruction issue allows in the bucket of M rows, over the bandwidth of a copy.
- `complete`: 1 when every point was timed, 0 otherwise.

The draft step's are those of `draft_step.py`.
"""

import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence

from aerie.benchmarks.kernels import draft_step
from aerie.benchmarks.kernels.gpu.shapes import ROWS, SHAPES
from aerie.benchmarks.points import Record, number

SUMMARISED = (16, 32)
LAYERS = tuple(shape.name for shape in SHAPES)


def numbers(record: Record, name: str) -> list[float]:
    """A field that is a list of numbers; what is none is left out."""
    values = record[name]
    return [float(one) for one in values if isinstance(one, int | float)] if isinstance(values, list) else []


def issue_roof_gbs(multiprocessors: int, clock_mhz: float, per_weight: float, bytes_per_weight: float) -> float:
    """GB/s of weights that a GPU has instructions for.

    Four schedulers of a multiprocessor issue an instruction for 32 lanes each at every tick; `per_weight` is how many a
    weight takes, and the rest follows. No kernel issues at every tick: it is a roof.
    """
    return multiprocessors * 4 * 32 * clock_mhz * 1e6 / per_weight * bytes_per_weight / 1e9


def points(records: Iterable[Record]) -> Iterator[tuple[str, int, dict[str, Record]]]:
    """Case, rows, and the record of each way, where ours was timed."""
    found: dict[tuple[str, int], dict[str, Record]] = {}
    for record in records:
        if record["kind"] == "time":
            found.setdefault((str(record["case"]), int(number(record, "rows"))), {})[str(record["way"])] = record
    yield from ((case, rows, timed) for (case, rows), timed in found.items() if "ours" in timed)


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over rounds of their time over ours."""
    return statistics.median(one / other for one, other in zip(theirs, ours, strict=True))


def _timed(records: Sequence[Record], copy_gbs: float | None) -> Iterator[tuple[str, float]]:
    for case, rows, timed in points(records):
        name = f"{case}_m{rows}"
        us = numbers(timed["ours"], "us")
        ours = statistics.median(us)
        yield f"us_{name}", ours
        yield f"us_{name}_std", statistics.stdev(us)
        if copy_gbs is not None:
            yield f"share_{name}", number(timed["ours"], "bytes") / ours / 1000 / copy_gbs
        for way, record in timed.items():
            if way != "ours":
                yield f"{way}_ratio_{name}", ratios(numbers(record, "us"), us)


def _summaries(
    records: Sequence[Record], layers: Collection[str], rows: Collection[int]
) -> Iterator[tuple[str, float]]:
    """Over the linear layers. A peer that lacks one of them has no summary: it would be of others than the rest's."""
    by_peer: dict[str, dict[tuple[str, int], float]] = {}
    for case, count, timed in points(records):
        for way, record in timed.items():
            if way != "ours":
                ratio = ratios(numbers(record, "us"), numbers(timed["ours"], "us"))
                by_peer.setdefault(way, {})[case, count] = ratio
    for way, found in by_peer.items():
        for limit in SUMMARISED:
            up_to = {(case, count) for case in layers for count in rows if count <= limit}
            if up_to <= found.keys():
                yield f"{way}_ratio_m{limit}", statistics.geometric_mean(found[case, limit] for case in layers)
                yield f"{way}_ratio_min_m{limit}", min(found[point] for point in up_to)


def _errors(records: Iterable[Record]) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in records:
        if record["kind"] == "error":
            name = f"error_{record['way']}"
            found[name] = max([found.get(name, 0.0), *numbers(record, "errors")])
    return found


def figures(
    records: Sequence[Record], layers: Collection[str] = LAYERS, rows: Collection[int] = ROWS
) -> dict[str, float]:
    """All that this file's docstring lists and the records have; `layers` and `rows` are what summaries are over."""
    copy = [record for record in records if record["kind"] == "copy"]
    copy_gbs = number(copy[0], "copy_gbs") if copy else None
    found = dict(_timed(records, copy_gbs)) | dict(_summaries(records, layers, rows)) | _errors(records)
    draft = [record for record in records if record["kind"] == "draft"]
    if copy_gbs is not None:
        found |= draft_step.figures([*draft, *copy])
        found |= {
            f"issue_roof_m{record['bucket']}": number(record, "gbs") / copy_gbs
            for record in records
            if record["kind"] == "issue_roof"
        }
    found["complete"] = float(any(record["kind"] == "end" and record["complete"] is True for record in records))
    return {name: float(f"{value:.6g}") for name, value in found.items()}
