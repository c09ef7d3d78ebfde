# SPDX-License-Identifier: Apache-2.0
"""What the operator computes, in float64 or any other dtype.

Shape suffixes: M rows, N outputs, K inputs, G groups of S inputs; the last group may be a part of one.
"""

import torch
from torch.nn.functional import silu


def dequantise(
    q_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    zero_NG: torch.Tensor | None,
    group_size: int,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """The weight [N, K]: (q - z) * scale, q and z unsigned in [0, 15], z = 8 where none is given."""
    group_of = torch.arange(q_NK.shape[1], device=q_NK.device) // group_size
    zero_NK = 8 if zero_NG is None else zero_NG.to(dtype)[:, group_of]
    return (q_NK.to(dtype) - zero_NK) * scale_NG.to(dtype)[:, group_of]


def int4_gemm(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    silu_mul: bool = False,
) -> torch.Tensor:
    """act(x W^T + bias) + residual in the weight's dtype, [M, N]; or [M, N/2], of gate over up, with `silu_mul`."""
    dtype = weight_NK.dtype
    y_MN = x_MK.to(dtype) @ weight_NK.T
    if bias_N is not None:
        y_MN = y_MN + bias_N.to(dtype)
    if silu_mul:
        gate, up = y_MN.chunk(2, dim=-1)
        y_MN = silu(gate) * up
    return y_MN if residual is None else y_MN + residual.to(dtype)
