# SPDX-License-Identifier: Apache-2.0
"""The flash path of the training-time test's attention against its plain twin, values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aerie.draft_models.joint_attention import joint_attention, joint_attention_reference

TOLERANCE = 2e-6


def _inputs(rows: int, keys: int, diagonal: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + keys + diagonal)
    batch, groups, size = 2, 3, 8
    shapes = [(rows, size), (keys, size), (keys, size), (rows, diagonal, size), (rows, diagonal, size)]
    tensors = [torch.randn((batch, groups, *shape), generator=generator).requires_grad_() for shape in shapes]
    last_seen = torch.randint(0, keys, (batch, 1, rows, 1), generator=generator)
    unseen = torch.arange(keys) > last_seen
    bias = torch.zeros(unseen.shape).masked_fill_(unseen, float("-inf"))
    return tensors, bias


@pytest.mark.parametrize(("rows", "keys", "diagonal"), [(1, 1, 0), (5, 7, 0), (7, 5, 1), (13, 70, 4), (33, 129, 7)])
def test_flash_equals_the_reference(rows: int, keys: int, diagonal: int) -> None:
    tensors, bias = _inputs(rows, keys, diagonal)
    weight = torch.randn(2, 3, rows, 8, generator=torch.Generator().manual_seed(0))
    results = []
    twins: list[Callable[..., Tensor]] = [joint_attention, joint_attention_reference]
    for attention in twins:
        out = attention(*tensors, bias)
        results.append([out, *torch.autograd.grad((out * weight).sum(), tensors)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=1e-5)


def test_one_softmax_spans_both_parts() -> None:
    tensors, bias = _inputs(4, 6, 2)
    values = [torch.ones_like(tensors[2]), torch.ones_like(tensors[4])]
    out = joint_attention(tensors[0], tensors[1], values[0], tensors[3], values[1], bias)
    torch.testing.assert_close(out, torch.ones_like(out))
