# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels of the mixture of experts are compiled to, found out without a GPU.

The limits are int4_gemm's (`benchmarks/kernels/gates.py`), and hold for the versions of Triton that are locked.
"""

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
import triton

from aerie.artefacts import REPOSITORY
from aerie.benchmarks.kernels.gates import COUNTED, PRODUCT, faults
from aerie.benchmarks.kernels.int4_moe import Case, build_add_up, build_align
from aerie.benchmarks.kernels.static import counted
from aerie.benchmarks.results_file import ResultFile
from aerie.kernels.aot import Code

DECODING = [
    Case(),
    Case(down=True),
    Case(asymmetric=True),
    Case(asymmetric=True, down=True),
    Case(group_size=64, asymmetric=True),
    Case(dtype=torch.float16, asymmetric=True),
    Case(asymmetric=True, odd=True),
]
MORE_ROWS = [Case(bucket="32", asymmetric=True), Case(bucket="64", asymmetric=True, down=True)]
OTHER_GPUS = [Case(architecture, asymmetric=True, down=down) for architecture in (80, 100) for down in (False, True)]

Build = Callable[[Case], Code]
pytestmark = pytest.mark.skipif(
    triton.__version__ not in COUNTED,
    reason=f"the limits hold for Triton {' and '.join(COUNTED)}, this is {triton.__version__}",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Compile a case, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield cache(Case.build)


@pytest.mark.parametrize("case", DECODING, ids=lambda case: case.name)
def test_decoding_on_hopper_reaches_the_memorys_speed(built: Build, case: Case) -> None:
    assert faults(built(case), case.weights) == set()


@pytest.mark.parametrize("case", MORE_ROWS, ids=lambda case: case.name)
def test_more_rows_of_an_expert_on_hopper(built: Build, case: Case) -> None:
    """As in int4_gemm: the tensor cores' share grows with the rows, and the sums' registers."""
    assert faults(built(case), case.weights) <= {"too many instructions", "a multiprocessor has room for one"}


@pytest.mark.parametrize("case", OTHER_GPUS, ids=lambda case: case.name)
def test_other_gpus(built: Build, case: Case) -> None:
    assert faults(built(case), case.weights) == set()


def test_the_weight_comes_from_registers(built: Build) -> None:
    """Nothing is stored to shared memory in the loop, and no bytes are permuted: words become operands as they are."""
    opcodes = built(Case()).loop_opcodes
    assert not opcodes["STS"]
    assert not opcodes["PRMT"]
    # Eight products of 16 inputs for each group of 128 and each 64 rows of the tile.
    assert opcodes["HGMMA"] == 2 * 2 * 8


def test_rows_of_x_are_copied_by_16_bytes(built: Build) -> None:
    """They are gathered, and yet whoever compiles is to see that each starts at a multiple of 16 bytes."""
    copies = [text.split()[0] for text in built(Case()).main_loop if text.startswith("LDGSTS")]
    narrow = [opcode for opcode in copies if ".128" not in opcode]
    # Scales, a word for each of 128 threads, in two halves of a step at most.
    assert len(narrow) <= 1
    assert len(copies) > len(narrow)


@pytest.mark.parametrize("architecture", sorted(PRODUCT))
def test_what_goes_before_and_after_does_not_spill(built: Build, architecture: int) -> None:
    assert build_align(architecture).spilled_bytes == 0
    assert build_add_up(architecture).spilled_bytes == 0


def test_the_committed_counts_are_those_of_this_code(built: Build) -> None:
    result = ResultFile.read(REPOSITORY / "benchmarks/results" / COUNTED[triton.__version__])
    if not any(figure.startswith("moe_") for figure in result.figures):
        pytest.skip("int4_moe was not counted yet: benchmarks/kernels/static.py")
    for case in [*DECODING, *MORE_ROWS, *OTHER_GPUS]:
        for figure, value in counted(built(case), case.weights).items():
            assert result.figures[f"{case.name}_{figure}"] == value, "count again: benchmarks/kernels/static.py"
