# SPDX-License-Identifier: Apache-2.0
"""Which rows of which expert a program multiplies: pairs of a token and an expert, sorted by expert, cut into blocks.

Pair m A + a is token m and the expert it chose as number a; there are P = M A. How many blocks they make only the GPU
knows, so a grid has room for the most that M, A and E allow, P while P <= E, and a program whose block has no work
returns at once. Nothing waits for the host: all this may be captured in a graph. Of each program the result is the
same in every run, for nothing is counted atomically.

Shape suffixes: M tokens, or rows of a block; A experts a token chooses, E experts; P pairs, Q other pairs, B blocks.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from aerie.kernels.int4_gemm.kernel import FIRST_COUNTER
from aerie.kernels.int4_gemm.pack import FIELD_MASK
from aerie.kernels.route import FUSION

MASK = tl.constexpr(FIELD_MASK)
"""What `int4_inner.weight_times_x` is to find in memory: word 0 of `control`."""
ALIGN_SIZE, ALIGN_AHEAD, ALIGN_WARPS = 32, 128, 8
ALIGN_ELEMENTS = 16384
"""Of a matrix of pairs by experts: more would not fit in the registers of 8 warps."""


@triton.jit
def local_expert(
    ids_ptr: tl.tensor, map_ptr: tl.tensor, at: tl.tensor, inside: tl.tensor, named: tl.tensor, experts: tl.tensor
) -> tl.tensor:
    """Which of the experts that are here the pairs `at` mean; -1 for none of them. `named` is the map's length."""
    expert = tl.load(ids_ptr + at, mask=inside, other=-1).to(tl.int32)
    if map_ptr is not None:
        known = (expert >= 0) & (expert < named)
        expert = tl.load(map_ptr + expert, mask=known, other=-1).to(tl.int32)
    return tl.where((expert >= 0) & (expert < experts), expert, -1)


@triton.jit(do_not_specialize=["pairs", "blocks", "named"])
def align_kernel(
    ids_ptr: tl.tensor,
    map_ptr: tl.tensor,
    order_ptr: tl.tensor,
    blocks_ptr: tl.tensor,
    control_ptr: tl.tensor,
    pairs: tl.tensor,
    blocks: tl.tensor,
    named: tl.tensor,
    experts: tl.tensor,
    counters: tl.tensor,
    tile_m: tl.constexpr,
    room: tl.constexpr,
    size: tl.constexpr,
    ahead: tl.constexpr,
) -> None:
    """Sort pairs by expert, those of an expert by token, and say which block has which; grid (P / size).

    Each program looks at all pairs, `ahead` at a time, and places `size` of them and as many blocks: none waits for
    another.
    `order_ptr`: int32 [P], the pairs; those of experts that are not here have no place. `blocks_ptr`: int32 [3, B], the
    expert, or -1, and the first of its places in `order` and the one after its last. `control_ptr`: the mask, and
    `counters` zeros for each block. `room`: a power of two, at least the number of experts.
    """
    mine_P = tl.program_id(0) * size + tl.arange(0, size)
    expert_P = local_expert(ids_ptr, map_ptr, mine_P, mine_P < pairs, named, experts)
    experts_E = tl.arange(0, room)
    pairs_E = tl.full((room,), 0, tl.int32)
    earlier_P = tl.full((size,), 0, tl.int32)
    for first in range(0, pairs, ahead):
        others_Q = first + tl.arange(0, ahead)
        expert_Q = local_expert(ids_ptr, map_ptr, others_Q, others_Q < pairs, named, experts)
        pairs_E += tl.sum((expert_Q[:, None] == experts_E[None, :]).to(tl.int32), axis=0)
        earlier_PQ = (expert_Q[None, :] == expert_P[:, None]) & (others_Q[None, :] < mine_P[:, None])
        earlier_P += tl.sum(earlier_PQ.to(tl.int32), axis=1)
    ends_E = tl.cumsum(pairs_E)
    starts_E = ends_E - pairs_E
    blocks_E = (pairs_E + tile_m - 1) // tile_m
    block_ends_E = tl.cumsum(blocks_E)
    is_PE = expert_P[:, None] == experts_E[None, :]
    place_P = earlier_P + tl.sum(tl.where(is_PE, starts_E[None, :], 0), axis=1)
    tl.store(order_ptr + place_P, mine_P, mask=expert_P >= 0)
    # From here on mine_P are blocks, of which there are not more than pairs.
    expert_B = tl.sum((block_ends_E[None, :] <= mine_P[:, None]).to(tl.int32), axis=1)
    is_BE = expert_B[:, None] == experts_E[None, :]
    before_E = starts_E - (block_ends_E - blocks_E) * tile_m
    first_B = tl.sum(tl.where(is_BE, before_E[None, :], 0), axis=1) + mine_P * tile_m
    end_B = tl.minimum(tl.sum(tl.where(is_BE, ends_E[None, :], 0), axis=1), first_B + tile_m)
    exists_B = mine_P < blocks
    tl.store(blocks_ptr + mine_P, tl.where(expert_B < room, expert_B, -1), mask=exists_B)
    tl.store(blocks_ptr + blocks + mine_P, first_B, mask=exists_B)
    tl.store(blocks_ptr + 2 * blocks + mine_P, end_B, mask=exists_B)
    if tl.program_id(0) == 0:
        tl.store(control_ptr, MASK)
    for counter in range(counters):
        tl.store(control_ptr + FIRST_COUNTER + mine_P * counters + counter, 0, mask=exists_B)


@triton.jit
def pairs_of_block(
    order_ptr: tl.tensor, blocks_ptr: tl.tensor, block: tl.tensor, blocks: tl.tensor, tile_m: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The pairs of a block with an expert, [M], and which of them are there: the first."""
    places_M = tl.load(blocks_ptr + blocks + block) + tl.arange(0, tile_m)
    valid_M = places_M < tl.load(blocks_ptr + 2 * blocks + block)
    return tl.load(order_ptr + places_M, mask=valid_M, other=0), valid_M


@dataclass(frozen=True)
class Choices:
    """What the router chose."""

    ids_MA: torch.Tensor
    expert_map: torch.Tensor | None
    experts: int
    """That are here."""

    @property
    def named(self) -> int:
        """Ids that the map knows."""
        return 0 if self.expert_map is None else len(self.expert_map)


@dataclass(frozen=True)
class Plan:
    """Pairs by expert, and blocks of them; what `align_kernel` writes."""

    order_P: torch.Tensor
    blocks_3B: torch.Tensor
    control: torch.Tensor


def most_blocks(pairs: int, experts: int, tile_m: int) -> int:
    """Blocks of `tile_m` rows that pairs can need, however they fall to the experts."""
    return (pairs + min(pairs, experts) * (tile_m - 1)) // tile_m


def ahead(room: int) -> int:
    """Pairs that a program of `align_kernel` looks at together; `room` is for the experts."""
    return max(min(ALIGN_AHEAD, ALIGN_ELEMENTS // room), 1)


def align(choices: Choices, tile_m: int, counters: int) -> Plan:
    """Sort pairs by expert and cut them into blocks of `tile_m`, with so many counters each."""
    ids_MA, pairs = choices.ids_MA, choices.ids_MA.numel()
    blocks, room = most_blocks(pairs, choices.experts, tile_m), triton.next_power_of_2(choices.experts)
    plan = Plan(
        ids_MA.new_empty(pairs, dtype=torch.int32),
        ids_MA.new_empty(3, blocks, dtype=torch.int32),
        ids_MA.new_empty(FIRST_COUNTER.value + blocks * counters, dtype=torch.int32),
    )
    align_kernel[(triton.cdiv(pairs, ALIGN_SIZE),)](
        ids_MA, choices.expert_map, plan.order_P, plan.blocks_3B, plan.control,
        pairs, blocks, choices.named, choices.experts, counters,
        tile_m=tile_m,
        room=room,
        size=ALIGN_SIZE,
        ahead=ahead(room),
        num_warps=ALIGN_WARPS,
        enable_fp_fusion=FUSION,
    )  # fmt: skip
    return plan
