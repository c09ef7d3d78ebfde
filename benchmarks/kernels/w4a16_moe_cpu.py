# SPDX-License-Identifier: Apache-2.0
"""INT4 mixtures of experts on a CPU: `python -m aerie.benchmarks.kernels.w4a16_moe_cpu --out FILE`.

Compares the INT4 operator with the same experts in float32, by torch one after another and by vLLM's own operator for
unquantised experts, on each instruction set this machine can run.
"""

from collections.abc import Iterable

from aerie.benchmarks import options
from aerie.benchmarks.kernels.w4a16_cpu import Record, number, write_sweeps

NAME = "kernels/w4a16_moe_cpu"
SWEEP = "aerie.benchmarks.kernels.w4a16_moe_cpu_sweep"


def figures(records: Iterable[Record]) -> dict[str, float]:
    """How much faster INT4 is than each way in float32 (above 1 INT4 wins), and its largest error."""
    found: dict[str, float] = {}
    for record in records:
        found["largest_error"] = round(max(number(record, "error"), found.get("largest_error", 0.0)), 5)
        case = f"{str(record['isa']).lower()}_{record['hidden']}x{record['inner']}_t{record['tokens']}"
        for way in ("float32", "vllm_float32"):
            found[f"{case}_speedup_over_{way}"] = round(number(record, way) / number(record, "int4"), 3)
    return found


def main(out: options.Out) -> None:
    """Time a layer of experts in INT4 and in float32."""
    write_sweeps(out, NAME, SWEEP, figures)


if __name__ == "__main__":
    options.run(main)
