# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the mixture of experts in Triton's interpreter, float16 and float32, against float64.

Tolerance, for each element: weights are exact, sums are in float32 and off by 1e-5 of the sum of their terms' sizes at
most, SiLU(gate) * up is rounded once, and so is y. Sizes are small, for the interpreter takes a second for half a
million weights.
"""

from collections import Counter

import pytest
import torch

from aerie.kernels.int4_gemm.pack import FIELD_MASK, FIRST_COUNTER, pack
from aerie.kernels.int4_gemm.reference import dequantise
from aerie.kernels.int4_gemm.tuning import DEFAULT, Cut, table
from aerie.kernels.int4_moe import api, reference
from aerie.kernels.int4_moe.pack import PackedExperts, stack
from aerie.kernels.int4_moe.tuning import TABLES, Cuts

pytestmark = pytest.mark.usefixtures("interpreter", "poison")

EXPERTS, CHOSEN = 4, 2
# H, I, group, zero points: whole tiles and steps; a tile of two outputs; nothing a multiple of anything.
SHAPES = [(256, 64, 128, True), (64, 1, 64, True), (100, 37, 64, False), (328, 35, 128, False), (130, 70, 64, True)]
TOKENS = [1, 3, 17]
HALF_ULP = {torch.float16: 2.0**-11, torch.float32: 2.0**-24}
TINY = {torch.float16: 2.0**-25, torch.float32: 0.0}
ACCUMULATION = 1e-5
SMALL = Cut(tile_n=128, tile_m=16, splits=1, warps=4, stages=3)


def random_experts(
    outputs: int, inputs: int, group: int, asymmetric: bool, gate_up: bool
) -> tuple[PackedExperts, torch.Tensor]:
    """Packed, and in float64."""
    packed, exact = [], []
    for _ in range(EXPERTS):
        q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
        # Both types of scales come by.
        scale = (torch.rand(outputs, -(-inputs // group)) * 0.02 + 0.01).to(
            torch.bfloat16 if asymmetric else torch.float16
        )
        zero = torch.randint(0, 16, scale.shape, dtype=torch.uint8) if asymmetric else None
        packed.append(pack(q, scale, zero, group, gate_up))
        exact.append(dequantise(q, scale, zero, group))
    return stack(packed), torch.stack(exact)


class Layer:
    """Random experts, packed, and in float64."""

    def __init__(self, hidden: int, inner: int, group: int, asymmetric: bool = False) -> None:
        self.gate_up, self.exact_gate_up = random_experts(2 * inner, hidden, group, asymmetric, True)
        self.down, self.exact_down = random_experts(hidden, inner, group, asymmetric, False)

    def bound(self, x: torch.Tensor, weights: torch.Tensor, local_ids: torch.Tensor) -> torch.Tensor:
        """How far y may be off, but for its own rounding."""
        bound = torch.zeros(x.shape, dtype=torch.float64)
        for token, (weights_A, ids_A) in enumerate(zip(weights.double(), local_ids.tolist(), strict=True)):
            for weight, expert in zip(weights_A, ids_A, strict=True):
                if expert < 0:
                    continue
                weight_2IH, down_HI, row_H = self.exact_gate_up[expert], self.exact_down[expert], x[token].double()
                gate, up = (weight_2IH @ row_H).chunk(2)
                for_gate, for_up = (ACCUMULATION * (weight_2IH.abs() @ row_H.abs())).chunk(2)
                gated = (torch.nn.functional.silu(gate) * up).abs()
                # d(SiLU(g) u) is at most 1.1 |u| dg + |SiLU(g)| du.
                off = 1.1 * up.abs() * for_gate + gate.abs() * for_up + HALF_ULP[x.dtype] * gated + TINY[x.dtype]
                bound[token] += weight.abs() * (down_HI.abs() @ (off + ACCUMULATION * gated))
        return bound

    def assert_close(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        weights: torch.Tensor,
        ids: torch.Tensor,
        expert_map: torch.Tensor | None = None,
    ) -> None:
        expected = reference.int4_moe(x, weights, ids, self.exact_gate_up, self.exact_down, expert_map)
        bound = self.bound(x, weights, reference.local_ids(ids, expert_map, EXPERTS))
        assert y.shape == expected.shape
        assert y.dtype == x.dtype
        assert ((y.double() - expected).abs() <= HALF_ULP[y.dtype] * expected.abs() + TINY[y.dtype] + bound).all()


def route(tokens: int, experts: int = EXPERTS, chosen: int = CHOSEN) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids, as vLLM's router gives them: float32, int32, distinct experts in any order."""
    ids = torch.stack([torch.randperm(experts)[:chosen] for _ in range(tokens)])
    return torch.rand(tokens, chosen).softmax(-1), ids.to(torch.int32)


def cuts(gate_up_splits: int = 1, down_splits: int = 1) -> Cuts:
    return Cuts(
        *(Cut(SMALL.tile_n, SMALL.tile_m, one, SMALL.warps, SMALL.stages) for one in (gate_up_splits, down_splits))
    )


@pytest.mark.parametrize(("hidden", "inner", "group", "asymmetric"), SHAPES)
@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
def test_kernels_equal_reference(hidden: int, inner: int, group: int, dtype: torch.dtype, asymmetric: bool) -> None:
    torch.manual_seed(hidden + inner)
    layer = Layer(hidden, inner, group, asymmetric)
    for tokens in TOKENS:
        x, (weights, ids) = torch.randn(tokens, hidden).to(dtype), route(tokens)
        layer.assert_close(api.int4_moe(x, weights, ids, layer.gate_up, layer.down), x, weights, ids)


@pytest.mark.parametrize(("gate_up_splits", "down_splits"), [(2, 1), (3, 1), (2, 2), (1, 3)])
def test_the_splits_of_k_are_added_up(gate_up_splits: int, down_splits: int) -> None:
    """Of three steps and of two: splits of different length, one of them none."""
    torch.manual_seed(0)
    layer = Layer(600, 20, 64, asymmetric=True) if down_splits == 1 else Layer(70, 260, 64)
    how = cuts(gate_up_splits, down_splits)
    for tokens in (1, 5):
        x, (weights, ids) = torch.randn(tokens, layer.down.outputs), route(tokens)
        y = api.run_kernels(x, weights, ids, layer.gate_up, layer.down, None, how)
        layer.assert_close(y, x, weights, ids)


@pytest.mark.parametrize("name", table(DEFAULT, folder=TABLES).buckets)
def test_every_cut_of_the_table_computes_the_same(name: str) -> None:
    torch.manual_seed(1)
    layer = Layer(100, 40, 64)
    how = table(DEFAULT, folder=TABLES).buckets[name]
    how = Cut(how.tile_n, how.tile_m, min(how.splits, 2), how.warps, how.stages)
    x, (weights, ids) = torch.randn(40, 100).half(), route(40)
    y = api.run_kernels(x, weights, ids, layer.gate_up, layer.down, None, Cuts(how, how))
    layer.assert_close(y, x, weights, ids)


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_one_expert_for_all(tokens: int) -> None:
    """More rows than a block has; the same expert twice in a token; and experts nobody asks for are not read."""
    torch.manual_seed(2)
    layer = Layer(64, 32, 64)
    for packed in (layer.gate_up, layer.down):
        packed.tables_ETRN[[0, 1, 2]] = 0x7E007E00  # scales that are not numbers
    weights, ids = torch.rand(tokens, CHOSEN), torch.full((tokens, CHOSEN), 3)
    x = torch.randn(tokens, 64)
    layer.assert_close(api.int4_moe(x, weights, ids, layer.gate_up, layer.down), x, weights, ids)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_experts_of_other_processes_add_nothing(dtype: torch.dtype) -> None:
    """Four of twelve are here; a token may have none of its own here, and an id of nobody's."""
    torch.manual_seed(3)
    layer = Layer(70, 40, 64, asymmetric=True)
    expert_map = torch.full((12,), -1, dtype=dtype)
    expert_map[[7, 2, 11, 0]] = torch.arange(EXPERTS, dtype=dtype)
    x, (weights, ids) = torch.randn(9, 70), route(9, experts=12, chosen=4)
    ids[3], ids[5, 1] = torch.tensor([1, 3, 5, 6], dtype=torch.int32), -1
    y = api.int4_moe(x, weights, ids.to(dtype), layer.gate_up, layer.down, expert_map)
    assert not y[3].any()
    layer.assert_close(y, x, weights, ids, expert_map)
    nowhere = torch.full_like(expert_map, -1)
    assert not api.int4_moe(x, weights, ids.to(dtype), layer.gate_up, layer.down, nowhere).any()


@pytest.mark.parametrize(("dtype", "splits"), [(torch.float16, 1), (torch.float32, 2)])
def test_a_token_does_not_depend_on_its_company(dtype: torch.dtype, splits: int) -> None:
    """Else verifying drafted tokens would choose others than decoding them one by one. Bit for bit."""
    torch.manual_seed(4)
    layer = Layer(260, 30, 64, asymmetric=True)
    x, (weights, ids) = torch.randn(16, 260).to(dtype), route(16)

    def run(rows: slice | list[int]) -> torch.Tensor:
        chosen = (x[rows], weights[rows], ids[rows])
        return api.run_kernels(*chosen, layer.gate_up, layer.down, None, cuts(splits))

    together = run(slice(None))
    for tokens in (1, 2, 11):
        part = slice((5 * tokens) % (17 - tokens), (5 * tokens) % (17 - tokens) + tokens)
        assert torch.equal(run(part), together[part])
    assert torch.equal(run([9, 3, 12]), together[[9, 3, 12]])


def test_many_tokens_are_cut_into_runs() -> None:
    torch.manual_seed(5)
    layer = Layer(64, 32, 64)
    x, (weights, ids) = torch.randn(7, 64), route(7)
    y = api.run_kernels(x, weights, ids, layer.gate_up, layer.down, None, cuts(), most_pairs=6)
    layer.assert_close(y, x, weights, ids)


@pytest.mark.parametrize(
    ("tokens", "chosen", "experts", "tile_m"),
    [(1, 8, 128, 16), (9, 4, 7, 4), (50, 3, 6, 16), (16, 8, 128, 16), (18, 1, 1, 16)],
)
def test_pairs_are_sorted_by_expert_into_blocks(tokens: int, chosen: int, experts: int, tile_m: int) -> None:
    """Every third expert is elsewhere. Each pair that is here is in one block, with its expert and no other."""
    from aerie.kernels.expert_blocks import Choices, align

    torch.manual_seed(6)
    _, ids = route(tokens, experts, chosen)
    expert_map = torch.where(torch.arange(experts) % 3 == 2, -1, torch.arange(experts).flip(0))
    plan = align(Choices(ids, expert_map, experts), tile_m, counters=3)
    here = expert_map[ids.long()].flatten()
    pairs = [pair for pair in here.argsort(stable=True).tolist() if here[pair] >= 0]
    assert plan.order_P[: len(pairs)].tolist() == pairs
    blocks = [(expert, first, end) for expert, first, end in plan.blocks_3B.T.tolist() if expert >= 0]
    assert [place for _, first, end in blocks for place in range(first, end)] == list(range(len(pairs)))
    assert all(0 < end - first <= tile_m for _, first, end in blocks)
    assert all(int(here[pairs[place]]) == expert for expert, first, end in blocks for place in range(first, end))
    rows = Counter(here[pairs].tolist())
    assert Counter(expert for expert, _, _ in blocks) == {one: -(-count // tile_m) for one, count in rows.items()}
    # What is left of the grid comes last and has no work; counters start at nothing.
    assert (plan.blocks_3B[0, len(blocks) :] == -1).all()
    assert plan.control[0] == FIELD_MASK
    assert not plan.control[FIRST_COUNTER:].any()


def test_the_grid_has_room_for_every_choice_and_little_more() -> None:
    from aerie.kernels.expert_blocks import most_blocks

    for pairs in range(1, 40):
        for experts in range(1, 12):
            # All but one row apart, then all that is left to one expert: no choice needs more blocks.
            for tile_m in (1, 4, 16):
                spread = min(pairs, experts)
                needed = max(-(-(pairs - others) // tile_m) + others for others in range(spread))
                assert needed <= most_blocks(pairs, experts, tile_m) <= min(pairs, pairs // tile_m + experts)
    assert most_blocks(8, 128, 16) == 8


def test_bfloat16_is_refused() -> None:
    """The interpreter keeps bfloat16 as integers and computes with those: nonsense, and no error."""
    layer, (weights, ids) = Layer(64, 32, 64), route(1)
    with pytest.raises(TypeError, match="silently wrong in bfloat16"):
        api.int4_moe(torch.randn(1, 64).bfloat16(), weights, ids, layer.gate_up, layer.down)


def test_no_tokens() -> None:
    layer, weights = Layer(64, 32, 64), torch.empty(0, CHOSEN)
    assert api.int4_moe(torch.empty(0, 64), weights, weights.int(), layer.gate_up, layer.down).shape == (0, 64)
