# SPDX-License-Identifier: Apache-2.0
"""Round to nearest, symmetric, one scale a group.

Shape suffixes: N outputs, K inputs, G groups of S inputs (K = G * S).
"""

from typing import Literal

import torch

Q_MIN, Q_MAX = -8, 7
# Shrinking a group's range trades clipped outliers for finer steps; below half its magnitude the clipping always
# dominates for the weight distributions of trained models.
MSE_SHRINK_FACTORS = tuple(1.0 - step / 40 for step in range(21))


def _round(weight_NGS: torch.Tensor, scale_NG: torch.Tensor) -> torch.Tensor:
    return torch.clamp(torch.round(weight_NGS / scale_NG.float().unsqueeze(-1)), Q_MIN, Q_MAX)


def _scale(magnitude_NG: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale in the dtype it is stored in; groups of zeros get 1, they dequantise to zero with any scale."""
    scale_NG = (magnitude_NG / ((Q_MAX - Q_MIN) / 2)).to(dtype)
    return torch.where(scale_NG > 0, scale_NG, torch.ones_like(scale_NG))


def round_to_nearest(
    weight_NK: torch.Tensor,
    group_size: int,
    clip: Literal["absmax", "mse"],
    scale_dtype: torch.dtype = torch.bfloat16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a weight: w ~ q * scale with q in [-8, 7].

    The integers are rounded against the scale as stored, so that its own rounding costs nothing more.

    Args:
        weight_NK: float weight [N, K], K a multiple of `group_size`.
        group_size: inputs that share a scale.
        clip: `absmax` maps the largest magnitude to 7.5 steps; `mse` searches the shrunken ranges for the least error.
        scale_dtype: dtype the scales are stored in.

    Returns:
        q_NK int8 and scale_NG.
    """
    n, k = weight_NK.shape
    weight_NGS = weight_NK.float().reshape(n, k // group_size, group_size)
    magnitude_NG = weight_NGS.abs().amax(dim=-1)
    scale_NG = _scale(magnitude_NG, scale_dtype)
    if clip == "mse":
        best_NG = torch.full_like(magnitude_NG, torch.inf)
        for factor in MSE_SHRINK_FACTORS:
            candidate_NG = _scale(magnitude_NG * factor, scale_dtype)
            restored_NGS = _round(weight_NGS, candidate_NG) * candidate_NG.float().unsqueeze(-1)
            error_NG = (restored_NGS - weight_NGS).square().sum(dim=-1)
            better_NG = error_NG < best_NG
            best_NG = torch.where(better_NG, error_NG, best_NG)
            scale_NG = torch.where(better_NG, candidate_NG, scale_NG)
    return _round(weight_NGS, scale_NG).to(torch.int8).reshape(n, k), scale_NG
