# SPDX-License-Identifier: Apache-2.0
"""Round to nearest, each group by itself.

Shape suffixes: N outputs, K inputs, G groups of S inputs (K = G * S).
"""

from typing import Literal

import torch

from aerie.quant.weight import LEVELS, MIDDLE, Int4Weight, Scheme, chunk_rows

Clip = Literal["absmax", "mse"]
# Shrinking a group's range trades clipped outliers for finer steps; below half its magnitude the clipping always
# dominates for the weight distributions of trained models.
MSE_SHRINK_FACTORS = tuple(1.0 - step / 40 for step in range(21))


def round_to_nearest(
    weight_NK: torch.Tensor,
    scheme: Scheme,
    clip: Clip,
    importance_K: torch.Tensor | None = None,
) -> Int4Weight:
    """Quantise a weight: w ~ (q - zero) * scale.

    The integers are rounded against the scale as stored, so that its own rounding costs nothing more.

    Args:
        weight_NK: float weight [N, K], K a multiple of the scheme's group size.
        scheme: groups, zero points, and what scales are stored in.
        clip: `absmax` spans a group's whole range, symmetric with the largest magnitude at 7.5 steps; `mse` searches
            the shrunken ranges for the one of least squared error.
        importance_K: weight of each input's squared error in that search, such as its mean squared activation.
    """
    n, k = weight_NK.shape
    q_NK = torch.empty(n, k, dtype=torch.uint8, device=weight_NK.device)
    scale_NG = torch.empty(n, scheme.groups(k), dtype=scheme.scale_dtype, device=weight_NK.device)
    zero_NG = torch.empty_like(scale_NG, dtype=torch.uint8)
    rows = chunk_rows(weight_NK)
    for first in range(0, n, rows):
        chunk = slice(first, first + rows)
        q_NK[chunk], scale_NG[chunk], zero_NG[chunk] = _quantise(weight_NK[chunk], scheme, clip, importance_K)
    return Int4Weight(q_NK, scale_NG, None if scheme.symmetric else zero_NG)


def _quantise(
    weight_NK: torch.Tensor, scheme: Scheme, clip: Clip, importance_K: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, k = weight_NK.shape
    weight_NGS = weight_NK.float().reshape(n, scheme.groups(k), -1)
    # Zero is always within the range: it is a level of its own in every group.
    low_NG, high_NG = weight_NGS.amin(dim=-1).clamp(max=0), weight_NGS.amax(dim=-1).clamp(min=0)
    scale_NG, zero_NG = _grid(low_NG, high_NG, scheme)
    if clip == "mse":
        importance_GS = None if importance_K is None else importance_K.float().reshape(weight_NGS.shape[1:])
        best_NG = torch.full_like(low_NG, torch.inf)
        for factor in MSE_SHRINK_FACTORS:
            scale, zero = _grid(low_NG * factor, high_NG * factor, scheme)
            error_NG = _error(weight_NGS, scale, zero, importance_GS)
            better_NG = error_NG < best_NG
            best_NG = torch.where(better_NG, error_NG, best_NG)
            scale_NG, zero_NG = torch.where(better_NG, scale, scale_NG), torch.where(better_NG, zero, zero_NG)
    return _levels(weight_NGS, scale_NG, zero_NG).to(torch.uint8).reshape(n, k), scale_NG, zero_NG.to(torch.uint8)


def _grid(low_NG: torch.Tensor, high_NG: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales as stored and zero points, float, that span the ranges."""
    if scheme.symmetric:
        scale_NG = scheme.stored(torch.maximum(-low_NG, high_NG) / (LEVELS / 2))
        return scale_NG, torch.full_like(low_NG, MIDDLE)
    scale_NG = scheme.stored((high_NG - low_NG) / LEVELS)
    return scale_NG, torch.clamp(torch.round(-low_NG / scale_NG.float()), 0, LEVELS)


def _levels(weight_NGS: torch.Tensor, scale_NG: torch.Tensor, zero_NG: torch.Tensor) -> torch.Tensor:
    rounded_NGS = torch.round(weight_NGS / scale_NG.float().unsqueeze(-1))
    return torch.clamp(rounded_NGS + zero_NG.unsqueeze(-1), 0, LEVELS)


def _error(
    weight_NGS: torch.Tensor, scale_NG: torch.Tensor, zero_NG: torch.Tensor, importance_GS: torch.Tensor | None
) -> torch.Tensor:
    """Squared error of each group."""
    centred_NGS = _levels(weight_NGS, scale_NG, zero_NG) - zero_NG.unsqueeze(-1)
    squared_NGS = (centred_NGS * scale_NG.float().unsqueeze(-1) - weight_NGS).square()
    return (squared_NGS if importance_GS is None else squared_NGS * importance_GS).sum(dim=-1)
