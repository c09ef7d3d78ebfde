# SPDX-License-Identifier: Apache-2.0
"""What the operator computes, in float64.

Shape suffixes: M rows, N outputs, K inputs, G groups of S inputs (K = G * S).
"""

import torch


def dequantise(q_NK: torch.Tensor, scale_NG: torch.Tensor, zero_NG: torch.Tensor | None = None) -> torch.Tensor:
    """The weight [N, K] in float64: (q - z) * scale, q and z unsigned in [0, 15], z = 8 where none is given."""
    n, k = q_NK.shape
    groups = scale_NG.shape[1]
    zero_NG1 = torch.full((n, groups, 1), 8.0, dtype=torch.float64) if zero_NG is None else zero_NG.double()[..., None]
    return ((q_NK.double().reshape(n, groups, k // groups) - zero_NG1) * scale_NG.double()[..., None]).reshape(n, k)


def w4a16_linear(
    x_MK: torch.Tensor,
    q_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    zero_NG: torch.Tensor | None = None,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """bfloat16(x) @ W^T + bias in float64 [M, N]; only the rounding of the activation is the operator's."""
    y_MN = x_MK.bfloat16().double() @ dequantise(q_NK, scale_NG, zero_NG).T
    return y_MN if bias_N is None else y_MN + bias_N.double()
