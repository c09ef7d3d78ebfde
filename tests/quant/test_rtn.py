# SPDX-License-Identifier: Apache-2.0
"""Rounding to nearest: bounds, groups, clipping."""

import pytest
import torch

from aerie.quant.methods.rtn import Q_MAX, Q_MIN, round_to_nearest

GROUP = 32


def restore(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return q.float() * scale.float().repeat_interleave(GROUP, dim=1)


def weight(outputs: int = 24, inputs: int = 128) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.02


def test_error_is_at_most_half_a_step() -> None:
    w = weight()
    q, scale = round_to_nearest(w, GROUP, "absmax")
    assert q.dtype == torch.int8
    assert q.min() >= Q_MIN
    assert q.max() <= Q_MAX
    # The largest positive weight sits at 7.5 steps, half a step above 7; the scale's own rounding adds a little.
    half = scale.float().repeat_interleave(GROUP, dim=1) * (0.5 + 7.5 * 2**-8)
    assert ((restore(q, scale) - w).abs() <= half).all()


def test_mse_clipping_is_never_worse_than_absmax_in_any_group() -> None:
    w = weight()
    w[:, ::GROUP] *= 6  # an outlier in each group is what clipping is for
    errors = []
    for clip in ("absmax", "mse"):
        restored = restore(*round_to_nearest(w, GROUP, clip))
        errors.append((restored - w).square().reshape(24, -1, GROUP).sum(-1))
    assert (errors[1] <= errors[0]).all()
    assert errors[1].sum() < 0.97 * errors[0].sum()


@pytest.mark.parametrize("clip", ["absmax", "mse"])
def test_groups_are_independent_and_zeros_stay_zero(clip: str) -> None:
    w = weight()
    w[3, GROUP : 2 * GROUP] = 0
    q, scale = round_to_nearest(w, GROUP, "mse" if clip == "mse" else "absmax")
    assert torch.isfinite(scale).all()
    assert (q[3, GROUP : 2 * GROUP] == 0).all()
    alone_q, alone_scale = round_to_nearest(w[:, :GROUP], GROUP, "mse" if clip == "mse" else "absmax")
    assert torch.equal(q[:, :GROUP], alone_q)
    assert torch.equal(scale[:, :1], alone_scale)
