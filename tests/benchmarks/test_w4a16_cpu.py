# SPDX-License-Identifier: Apache-2.0
"""What the INT4 benchmark says of its records."""

import pytest

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.kernels.w4a16_cpu import Record, figures
from aerie.kernels.w4a16_cpu.tuning import DENSE_FROM_ROWS

TIMES: Record = {"isa": "AVX2", "outputs": 64, "inputs": 32, "float32": 30.0, "few_rows": 10.0, "many_rows": 60.0}


def test_speedup_is_of_the_route_that_serves() -> None:
    many = DENSE_FROM_ROWS["AVX2"]
    found = figures([TIMES | {"rows": 1}, TIMES | {"rows": many}])
    assert found == {"avx2_64x32_m1_speedup_over_float32": 3.0, f"avx2_64x32_m{many}_speedup_over_float32": 0.5}


@pytest.mark.parametrize(("answer", "figure"), [("runs", 1.0), ("NotImplementedError: for 'Float'", 0.0)])
def test_whether_vllm_serves_float32(answer: str, figure: float) -> None:
    assert figures([{"isa": "AVX512", "vllm_float32": answer}]) == {"vllm_serves_float32": figure}


def test_a_time_must_be_a_number() -> None:
    with pytest.raises(BenchmarkError, match="few_rows"):
        figures([TIMES | {"rows": 1, "few_rows": "slow"}])
