# SPDX-License-Identifier: Apache-2.0
"""INT4 against 16 and 32 bit on this machine's CPU, the linear layers of large models and a small model served.

`python -m aerie.benchmarks.kernels.int4_cpu --out benchmarks/results/int4-cpu.json`, on a machine that has nothing
else to do. Each measured point is kept in `--work`: an interrupted run goes on where it was when started again.

Kernels: `ratio_bf16_mM`, `ratio_fp32_mM`, `ratio_dequant_mM`, `ratio_stock_mM`: time of bfloat16 or float32
`F.linear`, of dequantising and multiplying, of vLLM's own INT4 kernel, over the time of ours, at M rows, the geometric
mean over layers; above 1 ours is faster. Served: see serving/int4_engine.py.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from aerie.artefacts import REPOSITORY
from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.points import Points, Record, number
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.serving.int4_engine import EngineSettings, engine_figures, engine_records
from aerie.benchmarks.serving.int4_model import Shape

NAME, ENGINE_NAME = "kernels.int4_cpu", "serving.int4_engine"
POINT = "aerie.benchmarks.kernels.int4_cpu_point"
# Outputs x inputs of linear layers of Qwen3-8B (attention, both ways through the MLP) and Qwen3-32B.
SHAPES = ("4096x4096", "12288x4096", "4096x12288", "25600x5120")
ROWS = (1, 4, 8, 16, 64)
AGAINST = {"bf16": "bfloat16", "fp32": "float32", "dequant": "dequantise", "stock": "stock"}


def measure_shape(outputs: int, inputs: int, rounds: int, threads: int) -> list[Record]:
    """All ways at all numbers of rows, in a fresh process. Raises BenchmarkError."""
    words = map(str, (outputs, inputs, rounds, threads, *ROWS))
    # A session of its own: Ctrl-C reaches this process alone, which then ends the child.
    done = subprocess.run(
        [sys.executable, "-P", "-m", POINT, *words],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,
    )
    records: list[Record] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(records) != rounds * len(ROWS):
        raise BenchmarkError(f"the measurement of {outputs}x{inputs} ended with status {done.returncode}")
    return records


def _round_ratios(records: Sequence[Record], way: str) -> list[float]:
    """For each round the geometric mean over shapes of how many times ours `way` takes; raises BenchmarkError."""
    by_round: dict[float, dict[tuple[float, float], float]] = {}
    for record in records:
        shape = number(record, "outputs"), number(record, "inputs")
        by_round.setdefault(number(record, "round"), {})[shape] = number(record, way) / number(record, "ours")
    if len({frozenset(ratios) for ratios in by_round.values()}) > 1:
        raise BenchmarkError(f"not every shape was measured against {way} in every round")
    return [statistics.geometric_mean(ratios.values()) for _, ratios in sorted(by_round.items())]


def kernel_figures(records: Sequence[Record]) -> dict[str, float]:
    """The median over rounds of each ratio, with its spread over rounds; raises BenchmarkError."""
    figures: dict[str, float] = {}
    for name, way in AGAINST.items():
        for rows in sorted({int(number(one, "rows")) for one in records}):
            there = [one for one in records if one["rows"] == rows and way in one]
            if not there:
                continue
            ratios = _round_ratios(there, way)
            if len(ratios) < 2:
                raise BenchmarkError("at least two rounds are needed for a spread")
            figures |= {
                f"ratio_{name}_m{rows}": statistics.median(ratios),
                f"ratio_{name}_m{rows}_std": statistics.stdev(ratios),
                f"ratio_{name}_m{rows}_min": min(ratios),
            }
    return {name: round(value, 4) for name, value in figures.items()}


def _sizes(shape: str) -> tuple[int, int]:
    try:
        outputs, inputs = (int(part) for part in shape.split("x"))
    except ValueError as error:
        raise BenchmarkError(f"--shape {shape}: give outputs and inputs, such as 4096x4096") from error
    return outputs, inputs


def main(
    out: options.Out,
    work: Annotated[Path, typer.Option(file_okay=False, help="Where measured points and models are kept.")] = Path(
        REPOSITORY / "runs/int4-cpu"
    ),
    shape: Annotated[list[str] | None, typer.Option(help=f"Layers; repeat it. [default: {', '.join(SHAPES)}]")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Interleaved repeats of the layers.")] = 7,
    engine_rounds: Annotated[int, typer.Option(min=2, help="Interleaved repeats of the served models.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads. [default: all cores]")] = os.cpu_count() or 1,
    layers: Annotated[int, typer.Option(min=1, help="Of the served model.")] = 28,
    vocabulary: Annotated[int, typer.Option(min=512, help="Of the served model.")] = 151936,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    seed: options.Seed = 0,
) -> None:
    """Time the layers, then the served models, and write one result."""
    arguments = options.recorded({name: value for name, value in locals().items() if name != "work"})
    sizes = [_sizes(one) for one in shape or SHAPES]
    points = Points(work, arguments)
    timed = [
        record
        for outputs, inputs in sizes
        for record in points.kept(
            f"linear-{outputs}x{inputs}", partial(measure_shape, outputs, inputs, rounds, threads)
        )
    ]
    settings = EngineSettings(engine_rounds, threads, max_tokens, seed)
    served = engine_records(Shape(layers, vocabulary), settings, points)
    parts = ((NAME, timed), (ENGINE_NAME, served))
    result = ResultFile(
        provenance=Provenance.now(arguments, [seed]),
        runs=[Run(benchmark=name, measured=one) for name, records in parts for one in records],
        figures=kernel_figures(timed) | engine_figures(served),
    )
    result.write(out)
    options.show(result.figures)


if __name__ == "__main__":
    options.run(main)
