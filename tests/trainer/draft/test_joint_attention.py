# SPDX-License-Identifier: Apache-2.0
"""The flash path of the training-time test's attention against its plain twin, values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aerie.draft_models.joint_attention import causal_mask, flex_mask, joint_attention, joint_attention_reference

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


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_masks_of_both_kernels_show_the_same() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.tensor([[0, 3, 4], [2, 2, 8]])
    heads, keys, size, diagonal = 2, 9, 16, 3
    q, k, v = (torch.randn(2, 3, count, size, generator=generator) for count in (heads * 3, keys, keys))
    k_t, v_t = (torch.randn(2, 3, heads * 3, diagonal, size, generator=generator) for _ in range(2))
    bias = causal_mask(rows, keys, heads, torch.float32)
    assert isinstance(bias, Tensor)
    assert [(row == 0).sum().item() for row in bias[1, 0]] == [3, 3, 9] * heads
    expected = joint_attention_reference(q, k, v, k_t, v_t, bias)
    # Uncompiled flex attention has no backward pass on a CPU: values only. What autograd sees beyond the block is
    # plain operations.
    ours = joint_attention(q, k, v, k_t, v_t, flex_mask(rows, keys, heads))
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("diagonal", [0, 4])
def test_flex_differentiates_like_the_reference_on_a_gpu(diagonal: int) -> None:
    rows = torch.arange(40, device="cuda").repeat(2, 1)
    shapes = [(80, 32), (40, 32), (40, 32), (80, diagonal, 32), (80, diagonal, 32)]
    tensors = [torch.randn((2, 3, *shape), device="cuda", requires_grad=True) for shape in shapes]
    q, k, v, k_t, v_t = tensors
    hidden = torch.arange(40, device="cuda") > rows.repeat(1, 2)[:, None, :, None]
    bias = torch.zeros(hidden.shape, device="cuda").masked_fill(hidden, float("-inf"))
    weight = torch.randn(2, 3, 80, 32, device="cuda")
    outs = [
        joint_attention(q, k, v, k_t, v_t, causal_mask(rows, 40, 2, torch.float32)),
        joint_attention_reference(q, k, v, k_t, v_t, bias),
    ]
    results = [[out, *torch.autograd.grad((out * weight).sum(), tensors)] for out in outs]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-3, rtol=2e-3)
