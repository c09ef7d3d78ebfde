# SPDX-License-Identifier: Apache-2.0
"""What the prologue computes, in float64.

Shape suffixes: T tokens, H hidden size, W rows of the embedding table.
"""

import torch


def rms_norm(x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm in float64: x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)."""
    x_TH = x_TH.double()
    scale_T1 = (x_TH.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x_TH * scale_T1 * weight_H.double()


def draft_prologue(
    ids_T: torch.Tensor | None,
    table_WH: torch.Tensor,
    hidden_TH: torch.Tensor,
    embed_weight_H: torch.Tensor,
    hidden_weight_H: torch.Tensor,
    *,
    eps: float,
) -> torch.Tensor:
    """concat(norm(table[ids]), norm(hidden)), [T, 2H]; the residual that may be kept is its second half."""
    embed_TH = table_WH if ids_T is None else table_WH[ids_T.long()]
    return torch.cat([rms_norm(embed_TH, embed_weight_H, eps), rms_norm(hidden_TH, hidden_weight_H, eps)], dim=-1)
