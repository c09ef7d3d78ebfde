# SPDX-License-Identifier: Apache-2.0
"""What Triton kernels are compiled to, counted without a GPU.

`python -m aerie.benchmarks.kernels.static --out benchmarks/results/kernels-static.json`. A case is
`smARCH_mBUCKET_gGROUP_KIND_DTYPE` and what else it has (int4_gemm.py), or `moe_` and the like (int4_moe.py). Of each:
`CASE_per_weight`, instructions of the main loop for each weight, `_registers` of a thread, `_shared_bytes` of a
program, `_spilled_bytes`, `_conversions` of integers, and `_programs`, how many an H100 or H200 has room for on a
multiprocessor. All this follows from the versions in the provenance, on any machine.
"""

import triton

from aerie.benchmarks import options
from aerie.benchmarks.kernels import int4_gemm, int4_moe
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.kernels.aot import Code

NAME = "kernels.static"
NAIVE = "naive_sm90"


def counted(code: Code, weights: int) -> dict[str, float]:
    """The figures of a build."""
    return {
        "per_weight": round(code.per_weight(weights), 3),
        "registers": code.registers,
        "shared_bytes": code.shared_bytes,
        "spilled_bytes": code.spilled_bytes,
        "conversions": sum(count for opcode, count in code.loop_opcodes.items() if opcode.startswith("I2F")),
        "programs": code.programs(),
    }


def main(out: options.Out) -> None:
    """Compile every case and count."""
    builds = [(NAIVE, int4_gemm.build_naive(90), int4_gemm.NAIVE_WEIGHTS)]
    cases: list[int4_gemm.Case | int4_moe.Case] = [*int4_gemm.cases(), *int4_moe.cases()]
    builds += [(case.name, case.build(), case.weights) for case in cases]
    runs = [
        Run(benchmark=NAME, measured={"case": name, "loop_instructions": len(code.main_loop), **code.loop_opcodes})
        for name, code, _ in builds
    ]
    figures = {
        f"{name}_{figure}": value for name, code, weights in builds for figure, value in counted(code, weights).items()
    }
    arguments = {"triton": triton.__version__, "cases": [name for name, _, _ in builds]}
    result = ResultFile(provenance=Provenance.now(arguments, []), runs=runs, figures=figures)
    result.write(out)
    options.show(result.figures)


if __name__ == "__main__":
    options.run(main)
