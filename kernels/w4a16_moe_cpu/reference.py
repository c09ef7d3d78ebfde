# SPDX-License-Identifier: Apache-2.0
"""What the operator computes, in float64. Of its roundings only that of x is the reference's too.

Shape suffixes: T tokens, H hidden size, I inner size, A experts a token chooses, E experts.
"""

import torch


def w4a16_moe(
    x_TH: torch.Tensor,
    gate_up_E2IH: torch.Tensor,
    down_EHI: torch.Tensor,
    weights_TA: torch.Tensor,
    ids_TA: torch.Tensor,
) -> torch.Tensor:
    """y[t] = sum over a of weights[t, a] * down_e (silu(gate_e x) * up_e x) in float64 [T, H], token by token.

    Args:
        x_TH: activations, rounded to bfloat16 here.
        gate_up_E2IH: dequantised weights in float64, gate over up.
        down_EHI: dequantised weights in float64.
        weights_TA: what each chosen expert's output is multiplied by.
        ids_TA: the chosen experts; a negative one adds nothing.
    """
    y_TH = torch.zeros(x_TH.shape, dtype=torch.float64)
    for token, (weights_A, ids_A) in enumerate(zip(weights_TA.double(), ids_TA.tolist(), strict=True)):
        for weight, expert in zip(weights_A, ids_A, strict=True):
            if expert < 0:
                continue
            gate_I, up_I = (gate_up_E2IH[expert] @ x_TH[token].bfloat16().double()).chunk(2)
            y_TH[token] += weight * (down_EHI[expert] @ (torch.nn.functional.silu(gate_I) * up_I))
    return y_TH
