# SPDX-License-Identifier: Apache-2.0
"""What the operator computes, in float64.

Shape suffixes: M tokens, H hidden size, I inner size, A experts a token chooses, E experts that are here.
"""

import torch
from torch.nn.functional import silu


def local_ids(ids_MA: torch.Tensor, expert_map: torch.Tensor | None, experts: int) -> torch.Tensor:
    """Which of the experts that are here each choice means, int64; -1 is another process's, or nobody's."""
    ids_MA = ids_MA.long()
    if expert_map is not None:
        known_MA = (ids_MA >= 0) & (ids_MA < len(expert_map))
        ids_MA = expert_map.long()[ids_MA.where(known_MA, 0)].where(known_MA, -1)
    return ids_MA.where((ids_MA >= 0) & (ids_MA < experts), -1)


def int4_moe(
    x_MH: torch.Tensor,
    weights_MA: torch.Tensor,
    ids_MA: torch.Tensor,
    gate_up_E2IH: torch.Tensor,
    down_EHI: torch.Tensor,
    expert_map: torch.Tensor | None = None,
) -> torch.Tensor:
    """y[m] = sum over a of weights[m, a] * down_e (SiLU(gate_e x[m]) * up_e x[m]) in float64 [M, H], token by token.

    Args:
        x_MH: activations.
        weights_MA: what each chosen expert's output is multiplied by.
        ids_MA: the chosen experts.
        gate_up_E2IH: dequantised weights in float64, gate over up.
        down_EHI: dequantised weights in float64.
        expert_map: which of the experts that are here an id means, -1 for none of them; without one, ids say so.
    """
    y_MH = torch.zeros(x_MH.shape, dtype=torch.float64, device=x_MH.device)
    here_MA = local_ids(ids_MA, expert_map, len(down_EHI)).tolist()
    for token, (weights_A, experts_A) in enumerate(zip(weights_MA.double(), here_MA, strict=True)):
        for weight, expert in zip(weights_A, experts_A, strict=True):
            if expert < 0:
                continue
            gate_I, up_I = (gate_up_E2IH[expert] @ x_MH[token].double()).chunk(2)
            y_MH[token] += weight * (down_EHI[expert] @ (silu(gate_I) * up_I))
    return y_MH
