# SPDX-License-Identifier: Apache-2.0
"""INT4 linear layers on a CPU: `python -m aerie.benchmarks.kernels.w4a16_cpu --out FILE`.

Compares torch's INT4 operator, float32 tiles made from the same weights, dense float32 and bfloat16, and vLLM's own
kernel, on each instruction set this machine can run. docs/decisions/0004-int4-on-cpu.md is decided by it, and
`kernels/w4a16_cpu/tuning.py` holds what it finds.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.kernels.w4a16_cpu.tuning import DENSE_FROM_ROWS

NAME = "kernels/w4a16_cpu"
SWEEP = "aerie.benchmarks.kernels.w4a16_cpu_sweep"
# oneDNN and MKL choose for themselves; without these they would run AVX-512 inside an AVX2 measurement.
LIMITS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "AVX512": {"ATEN_CPU_CAPABILITY": "avx512"},
}
Record = dict[str, JsonValue]


def instruction_sets() -> list[str]:
    """Those of LIMITS that this machine can run."""
    import torch

    return [isa for isa in LIMITS if isa == "AVX2" or torch.cpu.get_capabilities().get("avx512_f", False)]


def sweep(isa: str, module: str) -> list[Record]:
    """Run a sweep in a process limited to an instruction set."""
    environment = os.environ | LIMITS[isa] | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    records: list[Record] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not records:
        raise BenchmarkError(f"the sweep on {isa} ended with status {done.returncode}")
    return records


def number(record: Record, way: str) -> float:
    """A time or an error of a record."""
    value = record[way]
    if not isinstance(value, int | float):
        raise BenchmarkError(f"{way} is not a number: {value}")
    return float(value)


def figures(records: Iterable[Record]) -> dict[str, float]:
    """How much faster than dense float32 the route is that `tuning.py` chooses (above 1 INT4 wins), and errors."""
    found: dict[str, float] = {}
    for record in records:
        for way in ("few_rows_error", "vllm_bfloat16_error"):
            if way in record:
                found[f"largest_{way}"] = round(max(number(record, way), found.get(f"largest_{way}", 0.0)), 5)
        isa = str(record["isa"])
        if "vllm_float32" in record:
            found["vllm_serves_float32"] = float(record["vllm_float32"] == "runs")
            continue
        way = "many_rows" if number(record, "rows") >= DENSE_FROM_ROWS[isa] else "few_rows"
        layer = f"{isa.lower()}_{record['outputs']}x{record['inputs']}_m{record['rows']}"
        found[f"{layer}_speedup_over_float32"] = round(number(record, "float32") / number(record, way), 3)
    return found


def write_sweeps(out: Path, name: str, module: str, summarise: Callable[[Iterable[Record]], dict[str, float]]) -> None:
    """Run a sweep on every instruction set of this machine; write and show the result."""
    isas = instruction_sets()
    records = [record for isa in isas for record in sweep(isa, module)]
    arguments: dict[str, object] = {"instruction_sets": isas, "threads": 1, "unit": "microseconds of processor time"}
    result = ResultFile(
        provenance=Provenance.now(arguments, [0]),
        runs=[Run(benchmark=name, measured=record) for record in records],
        figures=summarise(records),
    )
    result.write(out)
    options.show(result.figures)


def main(out: options.Out) -> None:
    """Time a linear layer in every form it can be served in."""
    write_sweeps(out, NAME, SWEEP, figures)


if __name__ == "__main__":
    options.run(main)
