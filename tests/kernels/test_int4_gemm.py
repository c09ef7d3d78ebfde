# SPDX-License-Identifier: Apache-2.0
"""The INT4 product for GPUs as far as a CPU can tell: its layout, its tables of cuts, its operator in plain PyTorch.

Tolerance of the operator on a CPU, for each element: y is rounded once, half a unit in its last place; sums are in
float32, so they are off by 1e-5 sum |x| |w| at most.
"""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from aerie.kernels.int4_gemm import PER_CHANNEL, UnsupportedError, api, operator_group, reference, tuning, unsupported
from aerie.kernels.int4_gemm.pack import (
    FIRST_COUNTER,
    LEAST_TILE_N,
    PackedWeight,
    control,
    from_awq,
    from_compressed_tensors,
    from_gptq,
    pack,
    unpack,
)
from aerie.quant.formats import FORMATS
from aerie.quant.formats.nibbles import pack as pack_nibbles
from aerie.quant.weight import Int4Weight

# N, K, group: a multiple of everything; one output; steps and groups that are not whole.
SHAPES = [(128, 512, 128), (64, 256, 64), (1, 128, 64), (77, 200, 64), (130, 328, 128), (30, 96, 64)]
HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
ACCUMULATION = 1e-5


def random_layer(
    outputs: int, inputs: int, group: int, asymmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """q [N, K], scales and zero points [N, G]."""
    groups = -(-inputs // group)
    q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    scale = (torch.rand(outputs, groups) * 0.01 + 0.001).bfloat16()
    return q, scale, torch.randint(0, 16, (outputs, groups), dtype=torch.uint8) if asymmetric else None


def assert_holds(weight: PackedWeight, q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> None:
    found_q, found_scale, found_zero = unpack(weight)
    assert torch.equal(found_q, q)
    assert torch.equal(found_scale, scale)
    assert found_zero is None if zero is None else found_zero is not None and torch.equal(found_zero, zero)


def test_two_inputs_side_by_side_are_the_halves_of_a_field() -> None:
    """The layout as its description has it, one value at a time."""
    words, tables, *_ = pack(torch.randint(0, 16, (3, 300)), torch.rand(3, 3).half(), group_size=128)
    assert words.shape == (4, 3, 16)
    assert tables.shape == (2, 1, 3)
    for k in (0, 1, 2, 31, 32, 33, 127, 128, 255, 299):
        q = torch.zeros(3, 300, dtype=torch.uint8)
        q[1, k] = 0xF
        words = pack(q, torch.ones(3, 3).half(), group_size=128).words_TNW
        tile, at = divmod(k, 128)
        j, p, r = at // 32, at % 32 // 2, at % 2
        assert int(words[tile, 1, p]) & 0xFFFFFFFF == 0xF << (4 * j + 16 * r)
        assert words.count_nonzero() == 1


def test_a_table_holds_two_scales_a_word_and_zero_points_twice() -> None:
    scale = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).half()
    zero = torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8)
    q = torch.zeros(1, 256, dtype=torch.uint8)
    bits = scale.view(torch.int16).to(torch.int32).flatten()
    tables = pack(q, scale, zero, 64).tables_TRN
    assert tables.flatten().tolist() == [bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, 0x43214321]
    tables = pack(torch.zeros(1, 512, dtype=torch.uint8), scale, zero, 128).tables_TRN
    assert tables.flatten().tolist() == [bits[0] | bits[1] << 16, 0x00210021, bits[2] | bits[3] << 16, 0x00430043]


@pytest.mark.parametrize("gate_up", [False, True], ids=["plain", "gate_up"])
@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
def test_packing_loses_nothing(outputs: int, inputs: int, group: int, asymmetric: bool, gate_up: bool) -> None:
    torch.manual_seed(0)
    q, scale, zero = random_layer(2 * outputs, inputs, group, asymmetric)
    for stored in (scale, scale.half()):
        assert_holds(pack(q, stored, zero, group, gate_up), q, stored, zero)


@pytest.mark.parametrize(
    ("inputs", "group", "size", "repeats"),
    [(512, 256, 128, [0, 0, 1, 1]), (384, 192, 64, [0, 0, 0, 1, 1, 1]), (300, PER_CHANNEL, 128, [0, 0, 0])],
)
def test_larger_groups_are_cut(inputs: int, group: int, size: int, repeats: list[int]) -> None:
    torch.manual_seed(1)
    q, scale, zero = random_layer(5, inputs, inputs if group == PER_CHANNEL else group, asymmetric=True)
    assert zero is not None
    weight = pack(q, scale, zero, group)
    assert weight.group_size == size == operator_group(inputs, group)
    assert_holds(weight, q, scale[:, repeats], zero[:, repeats])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [64, 128])
def test_reads_compressed_tensors(symmetric: bool, group: int) -> None:
    torch.manual_seed(2)
    q, scale, zero = random_layer(48, 384, group, not symmetric)
    stored = FORMATS["compressed-tensors"].tensors("layer", Int4Weight(q, scale, zero))
    words, zeros = stored["layer.weight_packed"], stored.get("layer.weight_zero_point")
    assert_holds(from_compressed_tensors(words, stored["layer.weight_scale"], zeros, group), q, scale, zero)


def test_reads_gptq() -> None:
    """Without zero points from our own files; with them in both of GPTQ's conventions, 16 - 1 wrapping round."""
    torch.manual_seed(3)
    q, scale, zero = random_layer(48, 384, 128, asymmetric=True)
    assert zero is not None
    zero[0, 0] = 0
    stored = FORMATS["gptq"].tensors("layer", Int4Weight(q, scale.half()))
    words, scales = stored["layer.qweight"], stored["layer.scales"]
    assert_holds(from_gptq(words, scales, None, 128), q, scale.half(), None)
    for offset in (0, 1):
        zeros = pack_nibbles(((zero - offset) & 0xF).T)
        assert_holds(from_gptq(words, scales, zeros, 128, zero_offset=offset), q, scale.half(), zero)


def test_reads_awq_as_vllm_hands_it_on() -> None:
    torch.manual_seed(4)
    q, scale, zero = random_layer(48, 384, 128, asymmetric=True)
    assert zero is not None
    words, zeros = pack_nibbles(q).T, pack_nibbles(zero.T).T
    assert_holds(from_awq(words, scale.T, zeros, 128), q, scale, zero)


@pytest.mark.parametrize("gate_up", [False, True], ids=["plain", "silu_mul"])
@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
def test_operator_equals_reference(dtype: torch.dtype, asymmetric: bool, gate_up: bool) -> None:
    for outputs, inputs, group in SHAPES:
        torch.manual_seed(outputs + inputs)
        q, scale, zero = random_layer(2 * outputs, inputs, group, asymmetric)
        weight, exact = pack(q, scale, zero, group, gate_up), reference.dequantise(q, scale, zero, group)
        for rows in (1, 5, 40):
            x, bias = torch.randn(rows, inputs).to(dtype), torch.randn(2 * outputs).to(dtype)
            residual = torch.randn(rows, outputs if gate_up else 2 * outputs).to(dtype)
            y = api.int4_gemm(x, weight, bias, residual)
            expected = reference.int4_gemm(x, exact, bias, residual, gate_up)
            products = reference.int4_gemm(x.abs(), exact.abs(), bias.abs())
            # Products of both halves, each off by 1e-5 of its size.
            bound = products.chunk(2, -1)[0] * products.chunk(2, -1)[1] + products[:, :outputs] if gate_up else products
            assert y.dtype == dtype
            assert ((y.double() - expected).abs() <= HALF_ULP[dtype] * expected.abs() + ACCUMULATION * bound).all()


def test_a_row_does_not_depend_on_its_company() -> None:
    """On a CPU too, bit for bit: a drafted token must be verified with the numbers it would be decoded with."""
    torch.manual_seed(5)
    q, scale, zero = random_layer(190, 640, 128, asymmetric=True)
    weight, x = pack(q, scale, zero, 128), torch.randn(16, 640)
    together = api.int4_gemm(x, weight)
    for rows in range(1, 16):
        assert torch.equal(api.int4_gemm(x[:rows], weight), together[:rows])


@pytest.mark.parametrize("gate_up", [False, True], ids=["plain", "silu_mul"])
def test_is_a_proper_operator(gate_up: bool) -> None:
    """Schema, fake implementation, tracing with changing shapes: what torch.compile and CUDA graphs build upon."""
    weight = pack(*random_layer(32, 256, 128, asymmetric=True), group_size=128, gate_up=gate_up)
    tensors = (weight.words_TNW, weight.tables_TRN, weight.control)
    for bias, residual in ((None, None), (torch.randn(32), torch.randn(3, 16 if gate_up else 32))):
        arguments = (torch.randn(3, 256), *tensors, bias, residual, 128, weight.scale_dtype, gate_up)
        torch.library.opcheck(torch.ops.aerie.int4_gemm.default, arguments)


def test_compiled_code_calls_it_whole() -> None:
    torch.manual_seed(6)
    weight = pack(*random_layer(32, 256, 128, asymmetric=False), group_size=128, gate_up=True)
    compiled = torch.compile(api.int4_gemm, fullgraph=True, backend="eager", dynamic=True)
    for rows in (2, 5, 70):
        x = torch.randn(2, rows, 256)
        assert torch.equal(compiled(x, weight), api.int4_gemm(x, weight))


def test_no_rows_are_no_rows() -> None:
    weight = pack(*random_layer(32, 256, 128, asymmetric=False), group_size=128)
    assert api.int4_gemm(torch.randn(2, 0, 256), weight).shape == (2, 0, 32)


@pytest.mark.parametrize(
    ("inputs", "group", "word"),
    [(128, 32, "group size 32 is no multiple of 64"), (128, 0, "group size 0"), (0, 64, "a layer of 0 inputs")],
)
def test_unsupported_layers_have_a_reason(inputs: int, group: int, word: str) -> None:
    assert (unsupported(inputs, group) or "").startswith(word)
    with pytest.raises(UnsupportedError, match=word):
        operator_group(inputs, group)


def test_what_does_not_fit_together_is_refused() -> None:
    q, scale, zero = random_layer(33, 256, 128, asymmetric=True)
    assert zero is not None
    with pytest.raises(UnsupportedError, match=r"scales are \(33, 1\), but 33 outputs have 2 groups of 128"):
        pack(q, scale[:, :1], group_size=128)
    with pytest.raises(UnsupportedError, match=r"zero points are \(32, 2\)"):
        pack(q, scale, zero[:32], 128)
    with pytest.raises(UnsupportedError, match="halves of a weight, but this one has 33 outputs"):
        pack(q, scale, gate_up=True)
    weight, x = pack(q, scale, zero), torch.randn(2, 256)
    with pytest.raises(UnsupportedError, match="x has 255 inputs, the weight 256"):
        api.int4_gemm(x[:, 1:], weight)
    with pytest.raises(UnsupportedError, match=r"the bias is \(32,\), not \(33,\)"):
        api.int4_gemm(x, weight, bias_N=torch.zeros(32))
    with pytest.raises(UnsupportedError, match=r"the residual is \(33,\), not \(2, 33\)"):
        api.int4_gemm(x, weight, residual=torch.zeros(33))
    with pytest.raises(ValueError, match="must be on one CPU or one CUDA GPU"):
        api.int4_gemm(x.to("meta"), weight)


@pytest.mark.parametrize("path", sorted(tuning.TABLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_table_can_be_used(path: Path) -> None:
    table = tuning.table(path.stem)
    assert set(table.buckets) == {*map(str, tuning.BUCKETS), "more"}
    cuts = [*table.buckets.items(), *((key[0], how) for key, how in table.shapes.items())]
    for name, how in cuts:
        assert how.tile_n >= LEAST_TILE_N
        assert all(size & (size - 1) == 0 for size in (how.tile_n, how.tile_m, how.warps))
        assert how.splits == 1 if name == "more" else how.tile_m >= int(name)
    assert table.buckets["16"].tile_m == 16
    assert table.measured == bool(table.shapes)
    assert "measured" in json.loads(path.read_text())
    results = Path(__file__).parents[2] / "benchmarks/results"
    assert all((results / Path(result).name).is_file() for result in table.ahead.values())
    # What holds for one GPU is not known of another of its architecture.
    assert not table.ahead or not re.fullmatch(rf"sm_\d+|{tuning.DEFAULT}", path.stem)


def test_all_rows_of_a_verification_are_cut_alike() -> None:
    table = tuning.table("sm_90")
    for outputs, inputs in ((4096, 4096), (6144, 4096), (12288, 4096), (4096, 12288), (151936, 4096), (64, 64)):
        cuts = {tuning.cut(table, rows, outputs, inputs, 128) for rows in range(1, 17)}
        assert len(cuts) == 1
        how = cuts.pop()
        tiles = -(-outputs // how.tile_n)
        assert how.splits == 1 or tiles * how.splits <= table.programs
        assert FIRST_COUNTER + tiles <= control(outputs, torch.device("cpu")).numel()
    assert tuning.cut(table, 8, 4096, 4096, 128).splits == 8
    assert tuning.cut(table, 100, 4096, 4096, 128).splits == 1


def test_the_most_particular_table_is_taken() -> None:
    assert tuning.table_names("NVIDIA H200", (9, 0)) == ["nvidia-h200", "sm_90", "default"]
    assert tuning.table("no-such-gpu", "sm_90", "default") is not tuning.table("no-such-gpu", "default")
    assert tuning.table("no-such-gpu", "default") == tuning.table("default")


def test_only_a_measurement_on_that_gpu_of_that_layer_shows_it_ahead(tmp_path: Path) -> None:
    layer = {"n": 6144, "k": 4096, "group": PER_CHANNEL, "result": "benchmarks/results/kernels-some.json"}
    layers = [layer, {**layer, "experts": 128, "result": "benchmarks/results/kernels-experts.json"}]
    table = {"measured": True, "note": "", "programs": 1, "buckets": {}, "shapes": [], "ahead": layers}
    (tmp_path / "example-gpu-141gb.json").write_text(json.dumps(table))
    ahead = partial(tuning.measured_ahead, tmp_path, "Example GPU (141GB)")
    assert ahead((6144, 4096, PER_CHANNEL, 1)) == "benchmarks/results/kernels-some.json"
    assert ahead((6144, 4096, PER_CHANNEL, 128)) == "benchmarks/results/kernels-experts.json"
    for other in ((6144, 4096, 128, 1), (3072, 4096, -1, 1), (6144, 2048, -1, 1), (6144, 4096, -1, 64)):
        assert ahead(other) is None
    assert tuning.measured_ahead(tmp_path, "Example GPU (96GB)", (6144, 4096, PER_CHANNEL, 1)) is None
