# SPDX-License-Identifier: Apache-2.0
"""What the compilers make of the Triton kernels: a row for each build that is told of, under both locked versions."""

from aerie.benchmarks.pages.load import Results

NAME, CUDA = "kernels-static", "kernels-static-cuda"
COUNTED = {
    "naive_sm90": "unpacked, converted and scaled one by one (`benchmarks/kernels/int4_naive.py`)",
    "sm90_m16_g128_sym_bf16_llvm": "the layout above, subtraction by LLVM",
    "sm90_m16_g128_asym_bf16_llvm": "the same, with zero points",
    "sm90_m16_g128_sym_bf16": "**int4_gemm**: subtraction in PTX",
    "sm90_m16_g128_asym_bf16": "**with zero points**",
    "sm90_m16_g64_sym_bf16": "groups of 64",
    "sm90_m16_g64_asym_bf16": "groups of 64, with zero points",
    "sm90_m16_g128_sym_fp16": "float16",
    "sm90_m16_g128_asym_fp16": "float16, with zero points",
    "sm90_m16_g128_sym_bf16_silu_mul_bias_residual": "SiLU(gate)·up, bias and residual",
    "sm90_m16_g128_asym_bf16_odd": "N and K multiples of nothing, with zero points",
    "sm90_m32_g128_sym_bf16": "up to 32 rows",
    "sm90_m64_g128_sym_bf16": "up to 64 rows",
    "sm80_m16_g128_sym_bf16": "sm_80",
    "sm80_m16_g128_asym_bf16": "sm_80, with zero points",
    "sm100_m16_g128_sym_bf16": "sm_100",
    "sm100_m16_g128_asym_bf16": "sm_100, with zero points",
    "moe_sm90_m16_g128_sym_bf16_gate_up": "**int4_moe**: gate and up",
    "moe_sm90_m16_g128_asym_bf16_gate_up": "gate and up, with zero points",
    "moe_sm90_m16_g128_sym_bf16_down": "**int4_moe**: down",
    "moe_sm90_m16_g128_asym_bf16_down": "down, with zero points",
}


def table(results: Results) -> str:
    """Instructions for each weight, registers, shared memory, programs."""
    figures, cuda = results[NAME].figures, results[CUDA]
    versions = [one.provenance.versions["triton"] for one in (cuda, results[NAME])]
    lines = [
        f"| | Triton {versions[0]}, the lock for GPUs | Triton {versions[1]} | registers | KiB shared | programs |",
        "| --- " + "| ---: " * 5 + "|",
    ]
    for name, said in COUNTED.items():
        counts = [one[f"{name}_per_weight"] for one in (cuda.figures, figures)]
        registers, shared, programs = (figures[f"{name}_{key}"] for key in ("registers", "shared_bytes", "programs"))
        cells = [*(f"{count:.2f}" for count in counts), f"{registers:.0f}", f"{shared / 1024:.0f}", f"{programs:.0f}"]
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    commit = results[NAME].provenance.commit
    return "\n".join(
        [*lines, "", f"Registers, memory and programs: under Triton {versions[1]}. Commit `{commit}`.", ""]
    )
