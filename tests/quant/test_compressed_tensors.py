# SPDX-License-Identifier: Apache-2.0
"""Our packing against the compressed-tensors library's own functions."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization.lifecycle.forward import dequantize

from aerie.quant.formats import compressed_tensors

SHAPES = [(1, 8), (3, 32), (16, 96), (33, 256)]


def random_integers(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randint(-8, 8, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_pack_equals_the_library(shape: tuple[int, int]) -> None:
    q = random_integers(shape)
    assert torch.equal(compressed_tensors.pack(q), pack_to_int32(q, 4))


@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_equals_the_library(shape: tuple[int, int]) -> None:
    packed = pack_to_int32(random_integers(shape), 4)
    assert torch.equal(compressed_tensors.unpack(packed), unpack_from_int32(packed, 4, torch.Size(shape)))
    assert torch.equal(compressed_tensors.unpack(packed), random_integers(shape))


def test_every_value_in_every_place() -> None:
    q = torch.stack([torch.arange(-8, 8, dtype=torch.int8).roll(place) for place in range(16)])
    assert torch.equal(compressed_tensors.unpack(compressed_tensors.pack(q)), q)


def test_dequantise_equals_the_library() -> None:
    q = random_integers((6, 64))
    scale = (torch.rand(6, 2, generator=torch.Generator().manual_seed(0)) + 0.1).bfloat16()
    expected = dequantize(q, scale.float())
    assert torch.equal(compressed_tensors.dequantise(compressed_tensors.pack(q), scale), expected)
