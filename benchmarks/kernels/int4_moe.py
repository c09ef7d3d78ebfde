# SPDX-License-Identifier: Apache-2.0
"""The builds of int4_moe that are counted and held by gates: both products in every cut of the tables.

How long they take is another question, for a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from aerie.benchmarks.kernels.int4_gemm import POINTERS, TABLES, loop_arguments
from aerie.kernels import expert_blocks
from aerie.kernels.aot import Code, build
from aerie.kernels.int4_gemm.pack import STEP
from aerie.kernels.int4_gemm.tuning import Cut, table
from aerie.kernels.int4_moe import kernel
from aerie.kernels.int4_moe.tuning import TABLES as FOLDER

CHOSEN, EXPERTS = 8, 128


@dataclass(frozen=True)
class Case:
    """One build of the kernel that multiplies."""

    architecture: int = 90
    bucket: str = "16"
    """Of an expert's rows; it decides the cut, as the architecture's table has it, with the most splits it allows."""
    group_size: int = 128
    asymmetric: bool = False
    dtype: torch.dtype = torch.bfloat16
    down: bool = False
    """The second product: no activation, a row of x for each pair. Else gate_up."""
    odd: bool = False
    """N and K are multiples of nothing."""

    @property
    def cut(self) -> Cut:
        """How the kernel is cut."""
        return table(TABLES[self.architecture], folder=FOLDER).buckets[self.bucket]

    @property
    def name(self) -> str:
        """As figures name it."""
        parts = [
            "moe",
            f"sm{self.architecture}",
            f"m{self.bucket}",
            f"g{self.group_size}",
            "asym" if self.asymmetric else "sym",
            "fp16" if self.dtype == torch.float16 else "bf16",
            "down" if self.down else "gate_up",
            "odd" if self.odd else "",
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
            "order_ptr": "*i32",
            "blocks_ptr": "*i32",
            "y_ptr": "*fp32" if self.down else pointer,
            "partial_ptr": "*fp32" if how.splits > 1 and not self.down else None,
            "pairs": "i32",
            "sharing": 1 if self.down else CHOSEN,
            "silu_mul": not self.down,
            "ptx": True,
            **loop_arguments(how, self.group_size, self.asymmetric, self.dtype, self.odd),
        }
        return build(kernel.product_kernel, arguments, self.architecture, how.warps, how.stages)


def build_align(architecture: int) -> Code:
    """The kernel that sorts, for the experts of a Qwen3-235B, some of which are elsewhere."""
    arguments: dict[str, object] = {
        "ids_ptr": "*i32",
        "map_ptr": "*i32",
        "order_ptr": "*i32",
        "blocks_ptr": "*i32",
        "control_ptr": "*i32",
        **dict.fromkeys(("pairs", "blocks", "named", "experts", "counters"), "i32"),
        "tile_m": 16,
        "room": EXPERTS,
        "size": expert_blocks.ALIGN_SIZE,
        "ahead": expert_blocks.ahead(EXPERTS),
    }
    return build(expert_blocks.align_kernel, arguments, architecture, expert_blocks.ALIGN_WARPS, 1)


def build_add_up(architecture: int) -> Code:
    """The kernel that adds up what experts yield, some of which are elsewhere."""
    arguments: dict[str, object] = {
        "z_ptr": "*fp32",
        "weights_ptr": "*fp32",
        "ids_ptr": "*i32",
        "map_ptr": "*i32",
        "y_ptr": "*bf16",
        **dict.fromkeys(("pairs", "named", "experts"), "i32"),
        "outputs": "i32:16",
        "chosen": CHOSEN,
        "splits": 1,
        "size": kernel.ADD_UP_SIZE,
    }
    return build(kernel.add_up_kernel, arguments, architecture, kernel.ADD_UP_WARPS, 1)


def cases() -> Iterator[Case]:
    """All that are counted: both products with and without zero points, groups and types on sm_90, then the rest."""
    for down in (False, True):
        for group_size in (128, 64):
            for asymmetric in (False, True):
                for dtype in POINTERS:
                    yield Case(group_size=group_size, asymmetric=asymmetric, dtype=dtype, down=down)
        yield Case(asymmetric=True, down=down, odd=True)
        for architecture in TABLES:
            for bucket in table(TABLES[architecture], folder=FOLDER).buckets:
                for asymmetric in (False, True):
                    if architecture != 90 or bucket != "16":
                        yield Case(architecture, bucket, asymmetric=asymmetric, down=down)
