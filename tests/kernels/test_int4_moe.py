# SPDX-License-Identifier: Apache-2.0
"""The INT4 mixture of experts for GPUs as far as a CPU can tell: its stacks, its cuts, its operator in plain PyTorch.

Tolerance of the operator on a CPU: SiLU(gate) * up and y are rounded to the dtype, and sums are float32. A rounding is
half a unit in the last place at most, and these are independent: one unit of y's norm is more than both add up to.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aerie.kernels.int4_gemm import PER_CHANNEL, UnsupportedError, tuning
from aerie.kernels.int4_gemm.pack import PackedWeight, from_compressed_tensors, from_gptq, pack
from aerie.kernels.int4_gemm.reference import dequantise
from aerie.kernels.int4_moe import api, reference, unsupported
from aerie.kernels.int4_moe.pack import PackedExperts, from_stored_awq, pack_experts, stack, unpack
from aerie.kernels.int4_moe.tuning import TABLES, cuts
from aerie.quant.formats import FORMATS
from aerie.quant.formats.nibbles import pack as pack_nibbles
from aerie.quant.weight import Int4Weight

EXPERTS, CHOSEN = 6, 3
# H, I, group.
SHAPES = [(256, 128, 128), (64, 1, 64), (200, 77, 64), (328, 70, 128)]
TOLERANCE = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-6}

Integers = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def integers(outputs: int, inputs: int, group: int, asymmetric: bool) -> Integers:
    """q [E, N, K], scales and zero points [E, N, G]."""
    q = torch.randint(0, 16, (EXPERTS, outputs, inputs), dtype=torch.uint8)
    scale = (torch.rand(EXPERTS, outputs, -(-inputs // group)) * 0.02 + 0.01).bfloat16()
    return q, scale, torch.randint(0, 16, scale.shape, dtype=torch.uint8) if asymmetric else None


def each(layer: Integers) -> list[Integers]:
    q, scale, zero = layer
    return [(q[e], scale[e], None if zero is None else zero[e]) for e in range(EXPERTS)]


def packed(layer: Integers, group: int, gate_up: bool = False) -> PackedExperts:
    return stack(pack(*one, group_size=group, gate_up=gate_up) for one in each(layer))


def exact(layer: Integers, group: int) -> torch.Tensor:
    return torch.stack([dequantise(*one, group) for one in each(layer)])


def route(tokens: int, experts: int = EXPERTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids, as vLLM's router gives them: float32, int32, distinct experts in any order."""
    ids = torch.stack([torch.randperm(experts)[:CHOSEN] for _ in range(tokens)])
    return torch.rand(tokens, CHOSEN).softmax(-1), ids.to(torch.int32)


def small_layer() -> tuple[PackedExperts, PackedExperts]:
    gate_up = packed(integers(64, 96, 64, asymmetric=True), 64, gate_up=True)
    return gate_up, packed(integers(96, 32, 64, asymmetric=True), 64)


def assert_holds(experts: PackedExperts, layer: Integers) -> None:
    q, scale, zero = layer
    found_q, found_scale, found_zero = unpack(experts)
    assert torch.equal(found_q, q)
    assert torch.equal(found_scale, scale)
    assert found_zero is None if zero is None else found_zero is not None and torch.equal(found_zero, zero)


@pytest.mark.parametrize("gate_up", [False, True], ids=["down", "gate_up"])
@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("outputs", "inputs", "group"), [(128, 512, 128), (2, 128, 64), (78, 200, 64)])
def test_packing_loses_nothing(outputs: int, inputs: int, group: int, asymmetric: bool, gate_up: bool) -> None:
    torch.manual_seed(0)
    layer = integers(outputs, inputs, group, asymmetric)
    experts = packed(layer, group, gate_up)
    assert_holds(experts, layer)
    assert (experts.experts, experts.outputs, experts.inputs) == (EXPERTS, outputs, inputs)
    assert experts.asymmetric == asymmetric


def test_channels_are_cut_into_groups() -> None:
    torch.manual_seed(1)
    q, scale, zero = integers(32, 300, 300, asymmetric=True)
    assert zero is not None
    experts = packed((q, scale, zero), PER_CHANNEL)
    assert experts.group_size == 128
    assert_holds(experts, (q, scale.repeat(1, 1, 3), zero.repeat(1, 1, 3)))


def stored(
    method: str, layer: Integers, names: tuple[str, str, str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Experts as a checkpoint has them, one along the first dimension, as vLLM loads them."""
    files = [FORMATS[method].tensors("expert", Int4Weight(*one)) for one in each(layer)]
    words, scales, zeros = (
        torch.stack([file[f"expert.{name}"] for file in files]) if f"expert.{name}" in files[0] else None
        for name in names
    )
    assert words is not None
    assert scales is not None
    return words, scales, zeros


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(
    ("method", "names", "read"),
    [
        ("compressed-tensors", ("weight_packed", "weight_scale", "weight_zero_point"), from_compressed_tensors),
        ("awq", ("qweight", "scales", "qzeros"), from_stored_awq),
    ],
)
def test_reads_what_vllm_loads(
    method: str, names: tuple[str, str, str], read: Callable[..., PackedWeight], asymmetric: bool
) -> None:
    torch.manual_seed(2)
    layer = integers(48, 384, 128, asymmetric or method == "awq")  # AWQ has zero points, whatever they are
    q, scale, zero = layer if method != "awq" else (layer[0], layer[1].half(), layer[2])
    words, scales, zeros = stored(method, (q, scale, zero), names)
    assert_holds(pack_experts(read, words, scales, zeros, 128, gate_up=True), (q, scale, zero))


def test_reads_gptq() -> None:
    """Without zero points from our own files; with them in both of GPTQ's conventions, 16 - 1 wrapping round."""
    torch.manual_seed(3)
    q, scale, zero = integers(48, 384, 128, asymmetric=True)
    scale = scale.half()
    assert zero is not None
    zero[0, 0, 0] = 0
    words, scales, _ = stored("gptq", (q, scale, None), ("qweight", "scales", "qzeros"))
    assert_holds(pack_experts(from_gptq, words, scales, group_size=128), (q, scale, None))
    for offset in (0, 1):
        zeros = torch.stack([pack_nibbles(((one - offset) & 0xF).T) for one in zero])
        experts = pack_experts(from_gptq, words, scales, zeros, 128, zero_offset=offset)
        assert_holds(experts, (q, scale, zero))


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_operator_equals_reference(dtype: torch.dtype, asymmetric: bool) -> None:
    expert_map = torch.tensor([3, -1, 0, 5, -1, 1, 4, 2])
    for hidden, inner, group in SHAPES:
        torch.manual_seed(hidden + inner)
        gate_up, down = integers(2 * inner, hidden, group, asymmetric), integers(hidden, inner, group, asymmetric)
        layer = packed(gate_up, group, gate_up=True), packed(down, group)
        for tokens, known in ((1, None), (5, expert_map), (40, None)):
            x, (weights, ids) = torch.randn(tokens, hidden).to(dtype), route(tokens, 6 if known is None else 8)
            y = api.int4_moe(x, weights, ids, *layer, known)
            expected = reference.int4_moe(x, weights, ids, exact(gate_up, group), exact(down, group), known)
            assert y.dtype == dtype
            assert (y.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def test_a_token_does_not_depend_on_its_company() -> None:
    """On a CPU too, bit for bit."""
    torch.manual_seed(5)
    layer, x, (weights, ids) = small_layer(), torch.randn(16, 96), route(16)
    together = api.int4_moe(x, weights, ids, *layer)
    for tokens in range(1, 16):
        assert torch.equal(api.int4_moe(x[:tokens], weights[:tokens], ids[:tokens], *layer), together[:tokens])


def test_is_a_proper_operator() -> None:
    """Schema, fake implementation, tracing with changing shapes: what torch.compile and CUDA graphs build upon."""
    (gate_up, down), (weights, ids) = small_layer(), route(3)
    tensors = (gate_up.words_ETNW, gate_up.tables_ETRN, down.words_ETNW, down.tables_ETRN)
    for expert_map in (None, torch.arange(EXPERTS)):
        kinds = (gate_up.group_size, down.group_size, gate_up.scale_dtype, down.scale_dtype)
        arguments = (torch.randn(3, 96), weights, ids, *tensors, expert_map, *kinds)
        torch.library.opcheck(torch.ops.aerie.int4_moe.default, arguments)


def test_compiled_code_calls_it_whole() -> None:
    torch.manual_seed(6)
    layer = small_layer()
    compiled = torch.compile(api.int4_moe, fullgraph=True, backend="eager", dynamic=True)
    for tokens in (2, 5, 40):
        x, (weights, ids) = torch.randn(tokens, 96), route(tokens)
        assert torch.equal(compiled(x, weights, ids, *layer), api.int4_moe(x, weights, ids, *layer))


def test_no_tokens_are_no_tokens() -> None:
    none = torch.empty(0, CHOSEN)
    assert api.int4_moe(torch.empty(0, 96), none, none.int(), *small_layer()).shape == (0, 96)


def test_unsupported_experts_have_a_reason() -> None:
    assert unsupported(4096, 1536, 128) is None
    assert unsupported(200, 77, PER_CHANNEL) is None
    assert unsupported(0, 768, 64) == "hidden size: a layer of 0 inputs"
    assert unsupported(2048, 768, 32) == "hidden size: group size 32 is no multiple of 64"
    assert unsupported(2048, 0, 64) == "inner size: a layer of 0 inputs"


def test_what_does_not_fit_together_is_refused() -> None:
    gate_up, down = small_layer()
    x, (weights, ids) = torch.randn(2, 96), route(2)
    with pytest.raises(UnsupportedError, match="only the first weights"):
        api.int4_moe(x, weights, ids, down, down)
    with pytest.raises(UnsupportedError, match="gate and up of 6 experts are 32 x 96, down of 6 is 96 x 31"):
        api.int4_moe(x, weights, ids, gate_up, packed(integers(96, 31, 64, False), 64))
    with pytest.raises(UnsupportedError, match=r"x is \(2, 95\), the experts have 96 inputs"):
        api.int4_moe(x[:, 1:], weights, ids, gate_up, down)
    with pytest.raises(UnsupportedError, match=r"for 2 tokens there are \(1, 3\) ids and \(2, 3\) weights"):
        api.int4_moe(x, weights, ids[:1], gate_up, down)
    with pytest.raises(ValueError, match="must be on one CPU or one CUDA GPU"):
        api.int4_moe(x.to("meta"), weights, ids, gate_up, down)
    with pytest.raises(UnsupportedError, match="there are 2 kinds of them"):
        stack([gate_up.expert(0), down.expert(0)])


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_table_can_be_used(path: Path) -> None:
    table = tuning.table(path.stem, folder=TABLES)
    assert set(table.buckets) == {*map(str, tuning.BUCKETS), "more"}
    for name, how in table.buckets.items():
        assert all(size & (size - 1) == 0 for size in (how.tile_n, how.tile_m, how.warps))
        # Products of a layer have the same blocks.
        assert {measured.tile_m for key, measured in table.shapes.items() if key[0] == name} <= {how.tile_m}
    assert table.buckets["16"].tile_m == 16
    assert table.measured == bool(table.shapes)


def test_all_tokens_of_a_verification_are_cut_alike() -> None:
    """Whatever experts they choose; and for a single token there are about as many programs as run at a time."""
    table = tuning.table("sm_90", folder=TABLES)
    for hidden, inner, splits in ((4096, 1536, (2, 1)), (2048, 768, (4, 1))):
        # As large as the experts, without their memory.
        words, tables = (torch.empty(0, device="meta"),) * 2
        gate_up = PackedExperts(words.new_empty(128, 1, 2 * inner, 16), tables, hidden, 128, torch.bfloat16, True)
        down = PackedExperts(words.new_empty(128, 1, hidden, 16), tables, inner, 128, torch.bfloat16, False)
        found = {cuts(table, tokens, 8, 128, gate_up, down) for tokens in range(1, 17)}
        assert len(found) == 1
        one = found.pop()
        assert (one.gate_up.splits, one.down.splits) == splits
        assert 8 * -(-gate_up.outputs // one.gate_up.tile_n) * one.gate_up.splits <= table.programs
        # 64 tokens: 4 rows an expert, blocks of 16. 2048: 128 rows.
        assert cuts(table, 64, 8, 128, gate_up, down).gate_up.tile_m == 16
        assert cuts(table, 64, 8, 128, gate_up, down).gate_up.splits == 1
        assert cuts(table, 2048, 8, 128, gate_up, down).gate_up.tile_m == 64
