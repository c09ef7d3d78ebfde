# SPDX-License-Identifier: Apache-2.0
"""How the kernel is cut for a GPU and a shape: read from tuning/GPU.json, never found out while serving.

A table is named after the GPU (`nvidia-h200.json`), else after its architecture (`sm_90.json`), else `default.json`. It
holds a cut for each bucket of M, and under `shapes` those that were measured for one bucket, N, K and group. Without a
measured one the K of a shape is split so that there are about as many programs as run at a time.

All M of the first bucket share a cut, so that the order of a row's sums is the same for each of them.

The table of a GPU may also say under `ahead` for which layers a measurement on that GPU shows the kernel ahead of the
one that vLLM would choose: N, K and group as a rank holds them, -1 for one scale an output, and the `result` file under
benchmarks/results that has the measurement. Another GPU of the same architecture has to be measured itself.

`int4_moe` has tables of its own, read and used by the same functions. A layer under its `ahead` is gate over up, with
the number of `experts` that a rank holds.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from aerie.kernels.int4_gemm.pack import STEP

TABLES = Path(__file__).parent / "tuning"
DEFAULT = "default"
BUCKETS = (16, 32, 64)
"""Greatest M of each bucket but the last, `more`."""
Layer = tuple[int, int, int, int]
"""N, K, group, and the number of experts: 1 of a linear layer."""


@dataclass(frozen=True)
class Cut:
    """How the work is cut into programs."""

    tile_n: int
    """Rows of the weight for a program, at least pack.LEAST_TILE_N."""
    tile_m: int
    """Rows of x; not fewer than the bucket has, where K is split."""
    splits: int
    """Programs that share the K of a tile; in a bucket the most that there may be."""
    warps: int
    stages: int


@dataclass(frozen=True)
class Table:
    """What is known of a GPU."""

    measured: bool
    """Whether any of it was timed on that GPU."""
    note: str
    programs: int
    """How many run at a time."""
    buckets: dict[str, Cut]
    shapes: dict[tuple[str, int, int, int], Cut]
    """By bucket, N, K and group."""
    ahead: dict[Layer, str]
    """Result file by layer."""


def bucket(rows: int) -> str:
    """The bucket of M as tables name it."""
    return next((str(greatest) for greatest in BUCKETS if rows <= greatest), "more")


def table_names(gpu: str, capability: tuple[int, int]) -> list[str]:
    """Tables for a GPU, the most particular first."""
    return [gpu_table(gpu), f"sm_{capability[0]}{capability[1]}", DEFAULT]


def gpu_table(gpu: str) -> str:
    """The name of a GPU's own table."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


@cache
def table(*names: str, folder: Path = TABLES) -> Table:
    """The first of these tables that there is."""
    path = next(path for path in (folder / f"{name}.json" for name in names) if path.is_file())
    stored = json.loads(path.read_text())
    shapes = {
        (entry["m"], entry["n"], entry["k"], entry["group"]): Cut(**entry["cut"]) for entry in stored.pop("shapes")
    }
    buckets = {name: Cut(**cut) for name, cut in stored.pop("buckets").items()}
    ahead = {
        (entry["n"], entry["k"], entry["group"], entry.get("experts", 1)): entry["result"]
        for entry in stored.pop("ahead", ())
    }
    return Table(**stored, buckets=buckets, shapes=shapes, ahead=ahead)


def measured_ahead(folder: Path, gpu: str, layer: Layer) -> str | None:
    """The result file that shows the folder's kernel ahead on this very GPU, as vLLM names it; None without one."""
    name = gpu_table(gpu)
    if not (folder / f"{name}.json").is_file():
        return None
    return table(name, folder=folder).ahead.get(layer)


@cache
def table_for(device: torch.device, folder: Path = TABLES) -> Table:
    """The table for a device; a CPU, that is the interpreter, gets the default."""
    if device.type == "cpu":
        return table(DEFAULT, folder=folder)
    names = table_names(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    return table(*names, folder=folder)


def cut(known: Table, rows: int, outputs: int, inputs: int, group_size: int, products: int = 1) -> Cut:
    """The cut of a product; the same for all M of a bucket. At least `products` of its kind run at a time."""
    name = bucket(rows)
    measured = known.shapes.get((name, outputs, inputs, group_size))
    if measured is not None:
        return measured
    general = known.buckets[name]
    tiles, steps = products * -(-outputs // general.tile_n), -(-inputs // STEP)
    # A split of a single step would spend its time on its start and its end.
    splits = min(general.splits, known.programs // tiles, steps // 2)
    return replace(general, splits=max(splits, 1))
