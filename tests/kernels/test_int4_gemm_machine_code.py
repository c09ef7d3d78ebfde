# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernel is compiled to, found out without a GPU. Holds for the versions of Triton that are locked.

The limits: `benchmarks/kernels/gates.py`.
"""

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
import triton

from aerie.artefacts import REPOSITORY
from aerie.benchmarks.kernels.gates import COUNTED, faults
from aerie.benchmarks.kernels.int4_gemm import NAIVE_WEIGHTS, Case, build_naive
from aerie.benchmarks.kernels.static import NAIVE, counted
from aerie.benchmarks.results_file import ResultFile
from aerie.kernels import int4_inner
from aerie.kernels.aot import Code

DECODING = [
    Case(),
    Case(asymmetric=True),
    Case(group_size=64),
    Case(group_size=64, asymmetric=True),
    Case(dtype=torch.float16, asymmetric=True),
    Case(silu_mul=True, bias=True, residual=True),
    Case(asymmetric=True, odd=True),
]
MORE_ROWS = [Case(bucket="32", asymmetric=True), Case(bucket="64", asymmetric=True)]
OTHER_GPUS = [Case(architecture, asymmetric=asymmetric) for architecture in (80, 100) for asymmetric in (False, True)]

Build = Callable[[Case | int], Code]
pytestmark = pytest.mark.skipif(
    triton.__version__ not in COUNTED,
    reason=f"the limits hold for Triton {' and '.join(COUNTED)}, this is {triton.__version__}",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Compile a case, or the naive kernel for an architecture, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield cache(lambda case: build_naive(case) if isinstance(case, int) else case.build())


@pytest.mark.parametrize("case", DECODING, ids=lambda case: case.name)
def test_decoding_on_hopper_reaches_the_memorys_speed(built: Build, case: Case) -> None:
    code = built(case)
    assert faults(code, case.weights) == set()


@pytest.mark.parametrize("case", MORE_ROWS, ids=lambda case: case.name)
def test_more_rows_on_hopper(built: Build, case: Case) -> None:
    """The tensor cores' share grows with the rows, and the sums' registers: the limits on both are for decoding."""
    assert faults(built(case), case.weights) <= {"too many instructions", "a multiprocessor has room for one"}


@pytest.mark.parametrize("case", OTHER_GPUS, ids=lambda case: case.name)
def test_other_gpus(built: Build, case: Case) -> None:
    assert faults(built(case), case.weights) == set()


@pytest.mark.parametrize("name", ["BFLOAT16", "FLOAT16"])
def test_biases_make_integers_of_bits(name: str) -> None:
    """All of q - z, as the PTX adds them. The interpreter, which has no bfloat16, cannot tell."""
    dtype = getattr(torch, name.lower())

    def number(bits: int) -> torch.Tensor:
        pair = torch.tensor([bits], dtype=torch.int32).view(dtype)
        assert pair[0] == pair[1]
        return pair[0]

    bias, minus = (getattr(int4_inner, f"{what}_{name}").value for what in ("BIAS", "MINUS"))
    for q in range(16):
        for z in range(16):
            assert number(bias | q << 16 | q) + number(minus | z << 16 | z) == q - z
    assert getattr(int4_inner, f"MINUS_8_{name}").value == minus | 8 << 16 | 8


def test_the_weight_comes_from_registers(built: Build) -> None:
    """Nothing is stored to shared memory in the loop, and no bytes are permuted: words become operands as they are."""
    opcodes = built(Case()).loop_opcodes
    assert not opcodes["STS"]
    assert not opcodes["PRMT"]
    # Eight products of 16 inputs for each group of 128 and each 64 rows of the tile.
    assert opcodes["HGMMA"] == 2 * 2 * 8


def test_a_naive_kernel_does_not_pass(built: Build) -> None:
    """The gate notices what it is there for."""
    assert faults(built(90), NAIVE_WEIGHTS) == {
        "no matrix product of its architecture",
        "converts integers",
        "too many instructions",
    }


def test_the_committed_counts_are_those_of_this_code(built: Build) -> None:
    result = ResultFile.read(REPOSITORY / "benchmarks/results" / COUNTED[triton.__version__])
    assert result.provenance.versions["triton"] == triton.__version__
    assert not result.provenance.commit.endswith("-dirty")
    builds = [(NAIVE, built(90), NAIVE_WEIGHTS)]
    builds += [(case.name, built(case), case.weights) for case in [*DECODING, *MORE_ROWS, *OTHER_GPUS]]
    for name, code, weights in builds:
        for figure, value in counted(code, weights).items():
            assert result.figures[f"{name}_{figure}"] == value, "count again: benchmarks/kernels/static.py"
