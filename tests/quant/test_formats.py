# SPDX-License-Identifier: Apache-2.0
"""Every format against its layout's definition, value by value, and compressed-tensors against the library."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization.lifecycle.forward import dequantize

from aerie.quant.errors import NotQuantisedError
from aerie.quant.formats import FORMATS, recognise
from aerie.quant.formats.base import Format, Selection
from aerie.quant.formats.nibbles import pack, unpack
from aerie.quant.weight import Int4Weight, Scheme

N, K = 24, 256
LAYER = "model.layers.0.self_attn.o_proj"
EXPERT = "model.layers.0.mlp.experts.3.down_proj"
NOTHING_KEPT = Selection((LAYER,), (), ())
CASES = [
    pytest.param(one, Scheme(group, symmetric, one.scale_dtype), id=f"{one.name}-{group or 'channel'}-{symmetric}")
    for one in FORMATS.values()
    for group in (0, 32, 64, 128)
    for symmetric in (True, False)
    if one.unsupported(Scheme(group, symmetric), LAYER, N, K) is None
]
Tensors = dict[str, torch.Tensor]


def random_weight(scheme: Scheme) -> Int4Weight:
    generator = torch.Generator().manual_seed(scheme.group_size)
    groups = (N, scheme.groups(K))
    q = torch.randint(0, 16, (N, K), dtype=torch.uint8, generator=generator)
    zero = torch.randint(0, 16, groups, dtype=torch.uint8, generator=generator)
    scale = scheme.stored(torch.rand(groups, generator=generator) * 0.01 + 0.001)
    return Int4Weight(q, scale, None if scheme.symmetric else zero)


def layer_tensors(one: Format, weight: Int4Weight) -> Tensors:
    return {name.removeprefix(f"{LAYER}."): tensor for name, tensor in one.tensors(LAYER, weight).items()}


def nibble(words: list[list[int]], row: int, column: int, place: int) -> int:
    return words[row][column] >> 4 * place & 15


def compressed_tensors_values(t: Tensors, group: int) -> Iterator[float]:
    words, scales = t["weight_packed"].tolist(), t["weight_scale"].tolist()
    zeros = t["weight_zero_point"].tolist() if "weight_zero_point" in t else None
    for n in range(N):
        for k in range(K):
            zero = 8 if zeros is None else nibble(zeros, n // 8, k // group, n % 8)
            yield (nibble(words, n, k // 8, k % 8) - zero) * scales[n][k // group]


def gptq_values(t: Tensors, group: int) -> Iterator[float]:
    words, zeros, scales = (t[kind].tolist() for kind in ("qweight", "qzeros", "scales"))
    for n in range(N):
        for k in range(K):
            zero = nibble(zeros, k // group, n // 8, n % 8) + 1
            yield (nibble(words, k // 8, n, k % 8) - zero) * scales[k // group][n]


def awq_values(t: Tensors, group: int) -> Iterator[float]:
    words, zeros, scales = (t[kind].tolist() for kind in ("qweight", "qzeros", "scales"))
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    for n in range(N):
        place = order.index(n % 8)
        for k in range(K):
            zero = nibble(zeros, k // group, n // 8, place)
            yield (nibble(words, k, n // 8, place) - zero) * scales[k // group][n]


DEFINITIONS: dict[str, Callable[[Tensors, int], Iterator[float]]] = {
    "compressed-tensors": compressed_tensors_values,
    "gptq": gptq_values,
    "awq": awq_values,
}


@pytest.mark.parametrize(("one", "scheme"), CASES)
def test_every_value_is_where_the_layout_has_it(one: Format, scheme: Scheme) -> None:
    weight = random_weight(scheme)
    values = DEFINITIONS[one.name](layer_tensors(one, weight), scheme.group_size or K)
    assert torch.equal(torch.tensor(list(values)).reshape(N, K), weight.dequantise())


@pytest.mark.parametrize(("one", "scheme"), CASES)
def test_what_is_written_is_recognised_and_read(one: Format, scheme: Scheme) -> None:
    weight = random_weight(scheme)
    tensors = layer_tensors(one, weight)
    assert tensors.keys() <= one.kinds
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    again = one.read(tensors)
    assert torch.equal(again.q_NK, weight.q_NK)
    assert again.q_NK.is_contiguous()
    assert torch.equal(again.dequantise(), weight.dequantise())
    assert again.scale_NG.dtype == one.scale_dtype
    config = {"quantization_config": one.quantization_config(scheme, NOTHING_KEPT)}
    assert recognise(config) is one
    described = one.describes(config)
    # AWQ's configuration does not tell a symmetric weight.
    assert described == (Scheme(scheme.group_size, False, torch.float16) if one.name == "awq" else scheme)


@pytest.mark.parametrize("shape", [(1, 8), (3, 32), (33, 256)])
def test_words_are_the_librarys(shape: tuple[int, int]) -> None:
    values = torch.randint(0, 16, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = pack_to_int32(values.to(torch.int8) - 8, 4)
    assert torch.equal(pack(values), words)
    assert torch.equal(unpack(words), values)
    assert torch.equal(unpack_from_int32(pack(values), 4, torch.Size(shape)) + 8, values)


@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_are_the_librarys(symmetric: bool) -> None:
    weight = random_weight(Scheme(64, symmetric))
    tensors = layer_tensors(FORMATS["compressed-tensors"], weight)
    q = unpack_from_int32(tensors["weight_packed"], 4, torch.Size(tensors["weight_shape"].tolist()))
    zero = None
    if not symmetric:
        zero = unpack_from_int32(tensors["weight_zero_point"], 4, weight.scale_NG.shape, packed_dim=0)
    expected = dequantize(q, tensors["weight_scale"].float(), zero)
    assert torch.equal(weight.dequantise(), expected)


@pytest.mark.parametrize(
    ("name", "scheme", "layer", "outputs", "inputs", "words"),
    [
        ("gptq", Scheme(128, False), LAYER, 64, 128, "symmetric: .* set symmetric: true, or format"),
        ("gptq", Scheme(128), LAYER, 60, 128, "ignore: .* 60 outputs, no multiple of a word's 8"),
        ("gptq", Scheme(128), "lm_head", 72, 128, "ignore: lm_head has 72 outputs, no multiple of 64"),
        ("awq", Scheme(128, False), "lm_head", 72, 128, "ignore: lm_head has 72 outputs, no multiple of 64"),
        ("awq", Scheme(0, False), LAYER, 64, 20, "ignore: .* 20 inputs"),
        ("awq", Scheme(0, False), EXPERT, 64, 128, "group_size: .* set group_size: 128"),
        ("compressed-tensors", Scheme(0), EXPERT, 64, 128, "group_size: .* set group_size: 128"),
        ("compressed-tensors", Scheme(128, False), LAYER, 60, 128, "ignore: .* 60 outputs"),
    ],
)
def test_refusals_name_the_option_and_the_fix(
    name: str, scheme: Scheme, layer: str, outputs: int, inputs: int, words: str
) -> None:
    reason = FORMATS[name].unsupported(scheme, layer, outputs, inputs)
    assert reason is not None
    assert re.match(words, reason)


@pytest.mark.parametrize(
    ("name", "scheme", "layer", "outputs"),
    [
        ("compressed-tensors", Scheme(128), LAYER, 60),
        ("compressed-tensors", Scheme(0, False), LAYER, 64),
        ("compressed-tensors", Scheme(128, False), "lm_head", 72),
        ("gptq", Scheme(0), EXPERT, 64),
        ("gptq", Scheme(128), "lm_head", 128),
        ("awq", Scheme(128), LAYER, 64),
    ],
)
def test_what_vllm_loads_is_not_refused(name: str, scheme: Scheme, layer: str, outputs: int) -> None:
    assert FORMATS[name].unsupported(scheme, layer, outputs, 128) is None


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}


def packed(*weights: dict[str, object]) -> dict[str, object]:
    return {"format": "pack-quantized", "config_groups": {str(i): {"weights": one} for i, one in enumerate(weights)}}


@pytest.mark.parametrize(
    "quantization",
    [
        None,
        {"quant_method": "fp8"},
        GPTQ | {"bits": 8},
        GPTQ | {"sym": False},
        GPTQ | {"desc_act": True},
        GPTQ | {"dynamic": {r"+:.*\.1\..*": {"bits": 8}}},
        AWQ | {"version": "gemv"},
        AWQ | {"zero_point": False},
        packed(),
        packed(WEIGHTS | {"num_bits": 8}),
        packed(WEIGHTS | {"actorder": "group"}),
        packed(WEIGHTS | {"strategy": "tensor", "group_size": None}),
        packed(WEIGHTS, WEIGHTS | {"group_size": 32}),
    ],
)
def test_what_cannot_be_read_is_not_recognised(quantization: dict[str, object] | None) -> None:
    assert recognise({"quantization_config": quantization}) is None


@pytest.mark.parametrize(
    ("quantization", "scheme"),
    [
        (GPTQ | {"checkpoint_format": "gptq_v2", "dynamic": {r"-:.*mlp\.gate$": {}}}, Scheme(128, True, torch.float16)),
        (GPTQ | {"group_size": -1, "desc_act": True}, Scheme(0, True, torch.float16)),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"},
            Scheme(64, False, torch.float16),
        ),
        (packed(WEIGHTS | {"actorder": "static"}, WEIGHTS), Scheme(128)),
    ],
)
def test_checkpoints_of_others_are_recognised(quantization: dict[str, object], scheme: Scheme) -> None:
    config = {"quantization_config": quantization}
    one = recognise(config)
    assert one is not None
    assert one.describes(config) == scheme


@pytest.mark.parametrize("one", FORMATS.values(), ids=FORMATS)
def test_a_missing_tensor_is_named(one: Format) -> None:
    with pytest.raises(NotQuantisedError, match=r"has no .*weight"):
        one.read({"bias": torch.zeros(1)})
