# SPDX-License-Identifier: Apache-2.0
"""The draft step's operators on a CUDA GPU: `python -m aerie.benchmarks.kernels.draft_step --out FILE`.

First correctness in bfloat16 and float16 against float64, then time in bfloat16: CUDA graphs of one call on each of 16
copies of the tensors, so that no weight is in the cache when it is read; ways interleaved, the median over replays.
Read against vLLM 0.33.0, whose RMSNorm kernel serves the unfused step where it is installed.

Figures: `us_PART_tT` and its `_std`, our time of a part at T tokens; `ratio_PART_tT` how many times as long what it
replaces takes; `share_PART_tT` our bytes per second over those of a copy in the same run; `ratio_step_tT` of prologue,
element-wise gate and head together; `copy_gbs`; `error_PART`, the largest. `head_local` is vLLM's local argmax.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import torch
import typer

from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.kernels.draft_step_parts import Part, Sizes, Step
from aerie.benchmarks.kernels.timing import Budget, GraphTimer, Timer, copy_bandwidth, interleaved
from aerie.benchmarks.points import Record, number
from aerie.benchmarks.results_file import Provenance, ResultFile, Run

NAME = "kernels/draft_step"
TOKENS = (1, 2, 4, 8, 16, 32, 64)
COPIES = 16
STEP = ("prologue", "gate_elementwise", "head")
TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1e-3}


def measure_part(
    name: str, make: Callable[[], Part], tokens: int, timer: Timer, rounds: int, budget: Budget | None = None
) -> Record:
    """One record: median and spread of every way, and the bytes a call moves."""
    copies = [make() for _ in range(COPIES)]
    ways = {way: [copy.ways[way] for copy in copies] for way in copies[0].ways}
    record: Record = {"part": name, "tokens": tokens, "bytes": copies[0].bytes}
    for way, times in interleaved(ways, timer, rounds, budget).items():
        record |= {way: statistics.median(times), f"{way}_std": statistics.stdev(times), "rounds": len(times)}
    return record


def errors(sizes: Sizes, dtype: torch.dtype, tokens: Iterable[int], device: str) -> list[Record]:
    """Our error in each part at each number of tokens; raises BenchmarkError where one is too large."""
    records: list[Record] = []
    for count in tokens:
        for name, make in Step(sizes, count, dtype, device).parts():
            records.append(part_error(name, make, count, dtype))
    return records


def part_error(name: str, make: Callable[[], Part], tokens: int, dtype: torch.dtype) -> Record:
    """Our error in one part; raises BenchmarkError where it is too large."""
    error = make().error()
    if not error <= TOLERANCE[dtype]:
        raise BenchmarkError(f"{name} at {tokens} tokens in {dtype}: relative error {error:.2g}")
    return {"part": name, "tokens": tokens, "dtype": str(dtype), "error": error}


def figures(records: Sequence[Record]) -> dict[str, float]:
    """What this file's docstring lists, from the records of errors, times and the copy."""
    found: dict[str, float] = {}
    copy_gbs = next(number(record, "copy_gbs") for record in records if "copy_gbs" in record)
    step: dict[int, list[float]] = {}
    for record in records:
        if "error" in record:
            name = f"error_{record['part']}"
            found[name] = max(number(record, "error"), found.get(name, 0.0))
        if "ours" not in record:
            continue
        ours, tokens = number(record, "ours"), int(number(record, "tokens"))
        case = f"{record['part']}_t{tokens}"
        found |= {f"us_{case}": ours, f"us_{case}_std": number(record, "ours_std")}
        found[f"ratio_{case}"] = number(record, "replaced") / ours
        found[f"share_{case}"] = number(record, "bytes") / ours / 1000 / copy_gbs
        if "local" in record:
            found[f"ratio_{record['part']}_local_t{tokens}"] = number(record, "local") / ours
        if record["part"] in STEP:
            sums = step.setdefault(tokens, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + number(record, "replaced"), sums[1] + ours
    found |= {f"ratio_step_t{tokens}": replaced / ours for tokens, (replaced, ours) in step.items()}
    return {name: round(value, 5) for name, value in (found | {"copy_gbs": copy_gbs}).items()}


def main(
    out: options.Out,
    replays: Annotated[int, typer.Option(min=2, help="Of each graph of 16 calls.")] = 50,
    seed: options.Seed = 0,
) -> None:
    """Check, then time, and write one result."""
    arguments = options.recorded(locals())
    if not torch.cuda.is_available():
        raise BenchmarkError("this measures GPU kernels, and torch sees no CUDA GPU")
    torch.manual_seed(seed)
    sizes = Sizes()
    records = [one for dtype in TOLERANCE for one in errors(sizes, dtype, TOKENS, "cuda")]
    timer = GraphTimer()
    records.append(copy_bandwidth(timer, replays))
    for tokens in TOKENS:
        step = Step(sizes, tokens, torch.bfloat16, "cuda")
        records += [measure_part(name, make, tokens, timer, replays) for name, make in step.parts()]
    result = ResultFile(
        provenance=Provenance.now({**arguments, "gpu": torch.cuda.get_device_name()}, [seed]),
        runs=[Run(benchmark=NAME, measured=record) for record in records],
        figures=figures(records),
    )
    result.write(out)
    options.show(result.figures)


if __name__ == "__main__":
    options.run(main)
