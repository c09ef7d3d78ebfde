# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of INT4 experts says of its records."""

from aerie.benchmarks.kernels.w4a16_cpu import Record
from aerie.benchmarks.kernels.w4a16_moe_cpu import figures

TIMES: Record = {"isa": "AVX2", "hidden": 64, "inner": 32, "tokens": 5, "int4": 10.0, "float32": 30.0}


def test_speedup_is_over_each_way_in_float32() -> None:
    records: list[Record] = [
        {**TIMES, "vllm_float32": 5.0, "error": 0.003},
        {**TIMES, "tokens": 1, "vllm_float32": 10.0, "error": 0.001},
    ]
    assert figures(records) == {
        "largest_error": 0.003,
        "avx2_64x32_t5_speedup_over_float32": 3.0,
        "avx2_64x32_t5_speedup_over_vllm_float32": 0.5,
        "avx2_64x32_t1_speedup_over_float32": 3.0,
        "avx2_64x32_t1_speedup_over_vllm_float32": 1.0,
    }
