# SPDX-License-Identifier: Apache-2.0
"""What the gate computes, in float64.

Shape suffixes: T tokens, K inputs, G gates, D channels of the attention's output (a multiple of G).
"""

import torch


def gate_attention(x_TK: torch.Tensor, weight_GK: torch.Tensor, attended_TD: torch.Tensor) -> torch.Tensor:
    """The product attended * sigmoid(x W^T), each gate for D / G neighbouring channels (arXiv 2505.06708, G1)."""
    gate_TG = torch.sigmoid(x_TK.double() @ weight_GK.double().T)
    return attended_TD.double() * gate_TG.repeat_interleave(attended_TD.shape[-1] // gate_TG.shape[-1], dim=-1)
