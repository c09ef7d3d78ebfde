# SPDX-License-Identifier: Apache-2.0
"""The machine code of the draft step's kernels, compiled ahead of time for GPUs this machine need not have.

Holds for Triton 3.9.0: other versions schedule and spill differently. Static facts only; no speed is claimed here.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import triton

from aerie.kernels.aot import Code, build
from aerie.kernels.attention_gate import kernel as gate
from aerie.kernels.draft_head import kernel as head
from aerie.kernels.draft_prologue import kernel as prologue
from aerie.kernels.route import interpreted
from aerie.kernels.tile_product import Tile

pytestmark = pytest.mark.skipif(interpreted(), reason="interpreted kernels have no machine code")

TRITON = "3.9.0"
ARCHITECTURES = (80, 90, 100)
SHARED_BYTES = 99 * 1024
"""What one program may have on the smallest of these generations (GeForce and L4 as well as A100, H100, B200)."""
HIDDEN, HEAD_DIM, VOCABULARY = 4096, 128, 32000
WARP_GROUP_ROWS = 64
STAGES = 3
"""Of a kernel that does not say: Triton's own default."""


class Case(NamedTuple):
    """One compilation: pointers by type, constants, and which arguments are multiples of 16 at the usual sizes."""

    kernel: Any
    pointers: dict[str, str]
    constants: dict[str, int | bool]
    aligned: tuple[str, ...]
    options: dict[str, int]
    tile: Tile | None = None


def prologue_case(hidden: int, wide: str) -> Case:
    floats = ("table", "hidden", "embed_weight", "hidden_weight", "x", "normed")
    block = triton.next_power_of_2(hidden)
    return Case(
        prologue.draft_prologue_kernel,
        {"ids_ptr": "*i32", **{f"{name}_ptr": wide for name in floats}, "eps": "fp32"},
        {"GATHER": True, "KEEP": True, "BLOCK_H": block},
        ("H", "table_stride", "hidden_stride"),
        {"num_warps": prologue.warps_for(block)},
    )


def elementwise_case(tile: Tile, wide: str) -> Case:
    return Case(
        gate.elementwise_gate_kernel,
        {f"{name}_ptr": wide for name in ("x", "weight", "attended", "gated")},
        {"BLOCK_D": tile.outputs, "BLOCK_T": tile.rows, "BLOCK_K": tile.inputs, "EVEN_K": True},
        ("D", "K", "x_stride", "attended_stride"),
        {"num_warps": tile.warps, "num_stages": tile.stages},
        tile,
    )


def headwise_case(rows: int, wide: str) -> Case:
    return Case(
        gate.headwise_gate_kernel,
        {f"{name}_ptr": wide for name in ("x", "weight", "attended", "gated")},
        {"BLOCK_T": rows, "BLOCK_K": gate.HEADWISE_INPUTS, "BLOCK_E": HEAD_DIM},
        ("K", "head_dim", "x_stride", "attended_stride", "gated_stride"),
        {"num_warps": gate.HEADWISE_WARPS},
    )


def head_case(tile: Tile, wide: str) -> Case:
    return Case(
        head.tile_best_kernel,
        {"hidden_ptr": wide, "weight_ptr": wide, "best_ptr": "*fp32", "best_id_ptr": "*i32"},
        {"BLOCK_V": tile.outputs, "BLOCK_T": tile.rows, "BLOCK_H": tile.inputs, "EVEN_H": True},
        ("V", "H", "hidden_stride"),
        {"num_warps": tile.warps, "num_stages": tile.stages},
        tile,
    )


def choose_case(_: str) -> Case:
    ids = {"best_id_ptr": "*i32", "d2t_ptr": "*i64", "tokens_ptr": "*i64", "next_ids_ptr": "*i32"}
    tiles = triton.next_power_of_2(triton.cdiv(VOCABULARY, head.TILES[0].outputs))
    constants: dict[str, int | bool] = {"MAP": True, "WRITE_NEXT": True, "BLOCK_P": tiles}
    return Case(head.choose_kernel, {"best_ptr": "*fp32", **ids}, constants, (), {"num_warps": 4})


def cases() -> Iterator[tuple[str, Callable[[str], Case]]]:
    """Every kernel with every tile that serves; each waits for the type of its wide tensors."""
    for size in (HIDDEN, 7168):
        yield f"prologue-{size}", partial(prologue_case, size)
    for tile in gate.ELEMENTWISE_TILES:
        yield f"elementwise-{tile.rows}", partial(elementwise_case, tile)
    for rows in (1, gate.HEADWISE_ROWS):
        yield f"headwise-{rows}", partial(headwise_case, rows)
    for tile in head.TILES:
        yield f"head-{tile.rows}", partial(head_case, tile)
    yield "choose", choose_case


CASES = dict(cases())
PRODUCTS = [name for name in CASES if name.startswith(("elementwise", "head-"))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at is what this Triton compiles now; nothing is left in the user's folder."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))


def compiled(case: Case, architecture: int, **options: int) -> Code:
    numbers = dict.fromkeys(case.kernel.arg_names, "i32") | dict.fromkeys(case.aligned, "i32:16")
    chosen = {"num_stages": STAGES, **case.options, **options}
    warps, stages = chosen.pop("num_warps"), chosen.pop("num_stages")
    code = build(case.kernel, {**numbers, **case.pointers, **case.constants}, architecture, warps, stages, chosen)
    assert len(code.instructions) > 20
    return code


def count(code: Code, pattern: str) -> int:
    return sum(re.match(pattern, text.split()[0]) is not None for _, text in code.instructions)


def streams_wide(code: Code) -> bool:
    """Whether both operands arrive by asynchronous copies of 16 bytes a thread, and by nothing narrower."""
    copies = count(code, "LDGSTS")
    return copies > 0 and count(code, r"LDGSTS\S*\.128$") == copies


def tensor_cores(tile: Tile, architecture: int) -> str:
    """The instruction that multiplies a tile on this generation."""
    if tile.outputs < WARP_GROUP_ROWS or architecture == 80:
        return "HMMA"
    return "HGMMA" if architecture == 90 else "UTCHMMA"


def test_the_installed_triton_is_the_one_this_holds_for() -> None:
    assert triton.__version__ == TRITON


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_nothing_spills(name: str, architecture: int) -> None:
    case = CASES[name]("*bf16")
    code = compiled(case, architecture)
    assert not code.spilled_bytes
    assert code.shared_bytes <= SHARED_BYTES
    if case.tile is None:
        return
    assert streams_wide(code)
    multiplied = {kind: count(code, rf"{kind}\b") for kind in ("HMMA", "HGMMA", "UTCHMMA")}
    assert [kind for kind, number in multiplied.items() if number] == [tensor_cores(case.tile, architecture)]


@pytest.mark.parametrize("name", PRODUCTS)
def test_float16_is_served_alike(name: str) -> None:
    case = CASES[name]("*fp16")
    code = compiled(case, 90)
    assert not code.spilled_bytes
    assert streams_wide(code)


@pytest.mark.parametrize("name", PRODUCTS)
def test_sizes_between_tiles_are_served_alike(name: str) -> None:
    case = CASES[name]("*bf16")
    uneven = {key: value if value is not True else False for key, value in case.constants.items()}
    code = compiled(case._replace(constants=uneven), 90)
    assert not code.spilled_bytes
    assert code.shared_bytes <= SHARED_BYTES
    assert streams_wide(code)


def test_narrow_loads_are_noticed() -> None:
    """Power: the same kernel, not told that rows begin at multiples of 16 bytes."""
    assert not streams_wide(compiled(CASES["head-16"]("*bf16")._replace(aligned=()), 90))


def test_spills_are_noticed() -> None:
    """Power: the same kernel, denied registers."""
    assert compiled(CASES["head-64"]("*bf16"), 80, maxnreg=32).spilled_bytes
