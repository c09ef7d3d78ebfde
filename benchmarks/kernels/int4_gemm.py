# SPDX-License-Identifier: Apache-2.0
"""The builds of int4_gemm that are counted and held by gates: every cut of the tables, and a naive kernel beside them.

How long they take is another question, for a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton.language as tl

from aerie.benchmarks.kernels.int4_naive import GROUP, int4_naive
from aerie.kernels.aot import Code, build
from aerie.kernels.int4_gemm.kernel import int4_gemm
from aerie.kernels.int4_gemm.pack import STEP
from aerie.kernels.int4_gemm.tuning import Cut, table

POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SCALES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
TABLES = {80: "default", 90: "sm_90", 100: "default"}
"""The table of cuts that a GPU of an architecture gets."""


def loop_arguments(how: Cut, group_size: int, asymmetric: bool, dtype: torch.dtype, odd: bool) -> dict[str, object]:
    """What the kernels that run the inner loop are told of their weights and their cut."""
    return {
        "words_ptr": "*i32",
        "tables_ptr": "*i32",
        "control_ptr": "*i32",
        "outputs": "i32" if odd else "i32:16",
        "inputs": "i32:16",
        "steps": "i32",
        "group": group_size,
        "asymmetric": asymmetric,
        "scale_dtype": SCALES[dtype],
        "splits": how.splits,
        "tile_n": how.tile_n,
        "tile_m": how.tile_m,
        "stages": how.stages,
        "even": not odd,
        "whole": not odd,
    }


@dataclass(frozen=True)
class Case:
    """One build of the kernel."""

    architecture: int = 90
    bucket: str = "16"
    """Of M; it decides the cut, as the architecture's table has it, with the most splits that it allows."""
    group_size: int = 128
    asymmetric: bool = False
    dtype: torch.dtype = torch.bfloat16
    silu_mul: bool = False
    bias: bool = False
    residual: bool = False
    odd: bool = False
    """N and K are multiples of nothing."""
    ptx: bool = True
    """False leaves the subtraction of zero points to LLVM."""

    @property
    def cut(self) -> Cut:
        """How the kernel is cut."""
        return table(TABLES[self.architecture]).buckets[self.bucket]

    @property
    def name(self) -> str:
        """As figures name it."""
        parts = [
            f"sm{self.architecture}",
            f"m{self.bucket}",
            f"g{self.group_size}",
            "asym" if self.asymmetric else "sym",
            "fp16" if self.dtype == torch.float16 else "bf16",
            "silu_mul" if self.silu_mul else "",
            "bias" if self.bias else "",
            "residual" if self.residual else "",
            "odd" if self.odd else "",
            "" if self.ptx else "llvm",
        ]
        return "_".join(filter(None, parts))

    @property
    def weights(self) -> int:
        """Weights that a program takes in one turn of its loop."""
        return self.cut.tile_n * STEP

    def build(self) -> Code:
        """Compile it; raises RuntimeError."""
        how, pointer = self.cut, POINTERS[self.dtype]
        arguments: dict[str, object] = {
            "x_ptr": pointer,
            "bias_ptr": pointer if self.bias else None,
            "residual_ptr": pointer if self.residual else None,
            "y_ptr": pointer,
            "partial_ptr": "*fp32" if how.splits > 1 else None,
            "rows": "i32",
            "silu_mul": self.silu_mul,
            "ptx": self.ptx,
            **loop_arguments(how, self.group_size, self.asymmetric, self.dtype, self.odd),
        }
        return build(int4_gemm, arguments, self.architecture, how.warps, how.stages)


NAIVE_TILE_N, NAIVE_TILE_M, NAIVE_WARPS, NAIVE_STAGES = 64, 16, 4, 3
NAIVE_WEIGHTS = NAIVE_TILE_N * GROUP.value


def build_naive(architecture: int) -> Code:
    """The naive kernel at the tile that serves it best: with a larger one it spills."""
    pointers = {"x_ptr": "*bf16", "words_ptr": "*i32", "scales_ptr": "*bf16", "y_ptr": "*bf16"}
    sizes = {"rows": "i32", "outputs": "i32:16", "inputs": "i32:16"}
    tile = {"tile_n": NAIVE_TILE_N, "tile_m": NAIVE_TILE_M}
    return build(int4_naive, {**pointers, **sizes, **tile}, architecture, NAIVE_WARPS, NAIVE_STAGES)


def cases() -> Iterator[Case]:
    """All that are counted: groups, zero points and types on sm_90, then the buckets of M, then the other GPUs."""
    for group_size in (128, 64):
        for asymmetric in (False, True):
            for dtype in POINTERS:
                yield Case(group_size=group_size, asymmetric=asymmetric, dtype=dtype)
    yield Case(silu_mul=True, bias=True, residual=True)
    yield Case(asymmetric=True, odd=True)
    for asymmetric in (False, True):
        yield Case(asymmetric=asymmetric, ptx=False)
    for architecture in TABLES:
        for bucket in table(TABLES[architecture]).buckets:
            for asymmetric in (False, True):
                if architecture != 90 or bucket != "16":
                    yield Case(architecture, bucket, asymmetric=asymmetric)
