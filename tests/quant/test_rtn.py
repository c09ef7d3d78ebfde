# SPDX-License-Identifier: Apache-2.0
"""Rounding to nearest: bounds, groups, zero points, clipping, importance."""

from typing import Literal

import pytest
import torch

from aerie.quant.methods.rtn import MSE_SHRINK_FACTORS, round_to_nearest
from aerie.quant.weight import CHUNK_WEIGHTS, Scheme, chunk_rows

GROUP = 32
N, K = 24, 128
Clip = Literal["absmax", "mse"]
CLIPS: tuple[Clip, ...] = ("absmax", "mse")
SCHEMES = [
    Scheme(group, symmetric, dtype)
    for group in (0, 32, 64, 128)
    for symmetric in (True, False)
    for dtype in (torch.bfloat16, torch.float16)
]


def normal(shift: float = 0.0) -> torch.Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(0)) * 0.02 + shift


def errors(w: torch.Tensor, scheme: Scheme, clip: Clip, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Squared error of each group, importance or not in it."""
    squared = (round_to_nearest(w, scheme, clip, importance).dequantise() - w).square()
    return (squared if importance is None else squared * importance).reshape(N, scheme.groups(K), -1).sum(-1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_error_is_at_most_half_a_step(scheme: Scheme) -> None:
    w = normal()
    weight = round_to_nearest(w, scheme, "absmax")
    assert weight.q_NK.dtype == torch.uint8
    assert weight.q_NK.max() <= 15
    assert weight.scale_NG.dtype == scheme.scale_dtype
    assert weight.scale_NG.shape == (N, scheme.groups(K))
    assert (weight.zero_NG is None) == scheme.symmetric
    # The largest positive weight may sit half a step above the last level, and the zero point is rounded too; the
    # scale's own rounding adds a little at 7.5 or 15 steps from zero.
    steps = 0.5 + 7.5 * 2**-8 if scheme.symmetric else 1.0 + 15 * 2**-8
    scale = weight.scale_NG.float().repeat_interleave(K // scheme.groups(K), dim=1)
    assert ((weight.dequantise() - w).abs() <= steps * scale).all()


def test_symmetric_levels_are_those_of_the_definition() -> None:
    """Group by group: scales of shrunken ranges rounded to bfloat16, and the first that has the least error."""
    w = normal()
    weight = round_to_nearest(w, Scheme(GROUP), "mse")
    for row, groups in enumerate(w.reshape(N, K // GROUP, GROUP)):
        for place, group in enumerate(groups):
            scales = [(group.abs().max() * factor / 7.5).bfloat16() for factor in MSE_SHRINK_FACTORS]
            levels = [torch.clamp(torch.round(group / scale.float()), -8, 7) for scale in scales]
            distances = [float((q * s.float() - group).square().sum()) for q, s in zip(levels, scales, strict=True)]
            best = distances.index(min(distances))
            assert weight.scale_NG[row, place] == scales[best]
            stored = weight.q_NK[row, place * GROUP : (place + 1) * GROUP]
            assert torch.equal(stored.float() - 8, levels[best])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_mse_clipping_is_never_worse_than_absmax_in_any_group(scheme: Scheme) -> None:
    w = normal()
    w[:, ::GROUP] *= 6  # an outlier in each group is what clipping is for
    absmax, mse = (errors(w, scheme, clip) for clip in CLIPS)
    assert (mse <= absmax).all()
    assert mse.sum() < 0.97 * absmax.sum()


def test_zero_points_follow_a_shifted_group() -> None:
    w = normal(0.05)
    symmetric, asymmetric = (errors(w, Scheme(GROUP, one), "absmax").sum() for one in (True, False))
    assert asymmetric < 0.5 * symmetric
    zero = round_to_nearest(w.abs(), Scheme(GROUP, symmetric=False), "absmax").zero_NG
    assert zero is not None
    assert (zero == 0).all()  # the range includes 0, where all weights are above it
    zero = round_to_nearest(-w.abs(), Scheme(GROUP, symmetric=False), "absmax").zero_NG
    assert zero is not None
    assert (zero == 15).all()


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_are_independent_and_zeros_stay_zero(clip: Clip, symmetric: bool) -> None:
    w, scheme = normal(), Scheme(GROUP, symmetric)
    w[3, GROUP : 2 * GROUP] = 0
    weight = round_to_nearest(w, scheme, clip)
    assert torch.isfinite(weight.scale_NG).all()
    assert (weight.dequantise()[3, GROUP : 2 * GROUP] == 0).all()
    alone = round_to_nearest(w[:, :GROUP], scheme, clip)
    assert torch.equal(weight.q_NK[:, :GROUP], alone.q_NK)
    assert torch.equal(weight.scale_NG[:, :1], alone.scale_NG)


@pytest.mark.parametrize("symmetric", [True, False])
def test_importance_moves_the_error_to_where_it_weighs_less(symmetric: bool) -> None:
    w, scheme = normal(), Scheme(GROUP, symmetric)
    w[:, ::GROUP] *= 6
    importance = torch.ones(K)
    importance[::GROUP] = 1e-3  # the outliers hardly count: clip them
    plain = round_to_nearest(w, scheme, "mse").dequantise()
    weighed = errors(w, scheme, "mse", importance)
    unweighed = ((plain - w).square() * importance).reshape(N, -1, GROUP).sum(-1)
    assert (weighed <= unweighed).all()
    assert weighed.sum() < 0.9 * unweighed.sum()
    even = round_to_nearest(w, scheme, "mse", torch.ones(K))
    assert torch.equal(even.dequantise(), plain)


def test_large_weights_are_quantised_in_parts() -> None:
    w, scheme = normal(), Scheme(GROUP, symmetric=False)
    times = 2 * CHUNK_WEIGHTS // (N * K) + 1
    whole, parts = round_to_nearest(w, scheme, "mse"), round_to_nearest(w.repeat(times, 1), scheme, "mse")
    assert (w.shape[0] * times) % chunk_rows(w)  # the last part is a smaller one
    assert torch.equal(parts.q_NK, whole.q_NK.repeat(times, 1))
    assert torch.equal(parts.dequantise(), whole.dequantise().repeat(times, 1))
