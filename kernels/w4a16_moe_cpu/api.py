# SPDX-License-Identifier: Apache-2.0
"""y[t] = sum over a of weights[t, a] * D_e bfloat16(silu(G_e x[t]) * U_e x[t]), with e = ids[t, a].

G_e, U_e [I, H] and D_e [H, I] are expert e's 4-bit weights, each product that of w4a16_cpu: it rounds what it
multiplies and what it returns to bfloat16 and adds in float32. silu(.) * . and the sum over a token's experts are
float32; y has x's dtype. Bytes read: 3 * H * I / 2 of integers for each expert that any token chose; FLOPs:
6 * T * A * H * I.

The tokens of one expert are gathered and multiplied together, by the route w4a16_cpu takes for so many rows. Below its
limit for many rows (128) a token's result does not depend, bit for bit, on which tokens come with it: no product does,
and a token's experts are added in the order of their ids.

Shape suffixes: T tokens, H hidden size, I inner size, A experts a token chooses, E experts, R tokens of one expert,
P outputs padded, B bytes of two inputs each, G groups.
"""

import torch

from aerie.kernels.w4a16_cpu.api import product
from aerie.kernels.w4a16_moe_cpu.pack import PackedExperts


def _expert(
    x_RH: torch.Tensor,
    gate_up_PB: torch.Tensor,
    gate_up_scales_GP2: torch.Tensor,
    down_PB: torch.Tensor,
    down_scales_GP2: torch.Tensor,
) -> torch.Tensor:
    """One expert over its tokens: bfloat16 [R, H] to bfloat16 [R, H]."""
    inner = down_PB.shape[1] * 2
    both_RP = product(x_RH, gate_up_PB, gate_up_scales_GP2).float()
    gated_RI = torch.nn.functional.silu(both_RP[:, :inner]) * both_RP[:, inner : 2 * inner]
    return product(gated_RI.bfloat16(), down_PB, down_scales_GP2)[:, : x_RH.shape[1]]


def _moe(
    x_TH: torch.Tensor,
    gate_up_EPB: torch.Tensor,
    gate_up_scales_EGP2: torch.Tensor,
    down_EPB: torch.Tensor,
    down_scales_EGP2: torch.Tensor,
    weights_TA: torch.Tensor,
    ids_TA: torch.Tensor,
) -> torch.Tensor:
    rounded_TH = x_TH.to(torch.bfloat16).contiguous()
    y_TH = torch.zeros(x_TH.shape, dtype=torch.float32)
    # The chosen pairs by expert, those of an expert by token.
    sorted_ids, order = ids_TA.flatten().sort(stable=True)
    tokens, weights = order // ids_TA.shape[1], weights_TA.flatten()[order].float().unsqueeze(-1)
    experts, counts = sorted_ids.unique_consecutive(return_counts=True)
    sizes = counts.tolist()
    for expert, tokens_R, weights_R1 in zip(experts.tolist(), tokens.split(sizes), weights.split(sizes), strict=True):
        if expert < 0:
            continue
        chosen_RH = _expert(
            rounded_TH[tokens_R],
            gate_up_EPB[expert],
            gate_up_scales_EGP2[expert],
            down_EPB[expert],
            down_scales_EGP2[expert],
        )
        y_TH.index_add_(0, tokens_R, chosen_RH * weights_R1)
    return y_TH.to(x_TH.dtype)


# torch.compile must not look inside: which experts run, and on how many tokens, is known only when they do.
_opaque_moe = torch.library.custom_op("aerie::w4a16_moe_cpu", _moe, mutates_args=())


@_opaque_moe.register_fake
def _(
    x_TH: torch.Tensor,
    gate_up_EPB: torch.Tensor,
    gate_up_scales_EGP2: torch.Tensor,
    down_EPB: torch.Tensor,
    down_scales_EGP2: torch.Tensor,
    weights_TA: torch.Tensor,
    ids_TA: torch.Tensor,
) -> torch.Tensor:
    return torch.empty_like(x_TH)


def w4a16_moe(
    x_TH: torch.Tensor, experts: PackedExperts, weights_TA: torch.Tensor, ids_TA: torch.Tensor
) -> torch.Tensor:
    """The operator of this file's docstring; returns [T, H] in x's dtype.

    Args:
        x_TH: activations, float32, bfloat16 or float16.
        experts: `pack_experts` of G over U and of D.
        weights_TA: what each chosen expert's output is multiplied by.
        ids_TA: the chosen experts, distinct in each row; a negative one is another process's, and adds nothing.
    """
    moe = _opaque_moe if torch.compiler.is_compiling() else _moe
    y_TH: torch.Tensor = moe(x_TH, *experts, weights_TA, ids_TA)
    return y_TH
