# SPDX-License-Identifier: Apache-2.0
"""How the kernels are cut for a GPU and a layer: tables as those of `int4_gemm/tuning.py`, in this folder's tuning/.

A bucket is of the rows that an expert is likely to have. Cuts of a bucket share `tile_m`: gate_up and down have the
same blocks.

M of the first bucket share a cut, whatever the experts get, and its splits are for a single token: so the order of a
token's sums is the same for each of them.
"""

from pathlib import Path
from typing import NamedTuple

from aerie.kernels.int4_gemm.tuning import BUCKETS, Cut, Table, cut
from aerie.kernels.int4_moe.pack import PackedExperts

TABLES = Path(__file__).parent / "tuning"
UNEVEN = 2
"""An expert is likely to have no more rows than this times the mean."""


class Cuts(NamedTuple):
    """How the two products of a layer are cut; alike in `tile_m`."""

    gate_up: Cut
    down: Cut


def cuts(known: Table, tokens: int, chosen: int, experts: int, gate_up: PackedExperts, down: PackedExperts) -> Cuts:
    """The cuts of a layer.

    Args:
        known: of the GPU.
        tokens: M.
        chosen: A.
        experts: all that there are to choose from, here or elsewhere.
        gate_up: of the experts that are here.
        down: likewise.
    """
    few = tokens <= BUCKETS[0]
    rows = tokens if few else min(tokens, -(-UNEVEN * tokens * chosen // experts))
    products = chosen if few else chosen * tokens
    return Cuts(*(cut(known, rows, one.outputs, one.inputs, one.group_size, products) for one in (gate_up, down)))
