# SPDX-License-Identifier: Apache-2.0
"""y = attended * sigmoid(x W^T): gated attention's output, before o_proj (arXiv 2505.06708, gate G1).

x [T, K], W [G, K], attended [T, D], y [T, D], one float dtype. G = D is one gate a channel; else D is a multiple of G
and each gate is that of E = D / G neighbouring channels, a head's. The kernels' sums, sigmoid and product are float32,
rounded once; torch's operators round each.

In 2-byte types: reads 2 G K + 2 T K + 2 T D bytes, writes 2 T D; 2 T G K FLOPs. Floors at K = 8192, D = 4096, T = 16
and 4.3 TB/s: 15.7 us element-wise (a weight of 67 MB), 0.24 us for 32 heads, less than a launch. Saved are two launches
and three passes over [T, D]. Above `MOST_TOKENS`, and in float32, arithmetic bounds the product, and torch computes it.
"""

from typing import Final

import torch

from aerie.kernels.route import interpreted, route

MOST_TOKENS: Final = 64
"""Tokens up to which the weight is read once by the kernel; a prompt has more."""


def _with_torch(x_TK: torch.Tensor, weight_GK: torch.Tensor, attended_TD: torch.Tensor) -> torch.Tensor:
    gate_TG = torch.sigmoid(torch.nn.functional.linear(x_TK, weight_GK))
    if gate_TG.shape == attended_TD.shape:
        return attended_TD * gate_TG
    gates = weight_GK.shape[0]
    heads_TGE: torch.Tensor = attended_TD.unflatten(-1, (gates, -1))
    return (heads_TGE * gate_TG.unsqueeze(-1)).flatten(-2)


def _gate(x_TK: torch.Tensor, weight_GK: torch.Tensor, attended_TD: torch.Tensor) -> torch.Tensor:
    streams = x_TK.shape[0] <= MOST_TOKENS and x_TK.dtype != torch.float32
    if route(x_TK, weight_GK, attended_TD) == "torch" or not (streams or interpreted()):
        return _with_torch(x_TK, weight_GK, attended_TD).contiguous()
    from aerie.kernels.attention_gate.kernel import launch

    gated_TD = attended_TD.new_empty(attended_TD.shape)
    if len(x_TK):
        launch(x_TK, weight_GK, attended_TD, gated_TD)
    return gated_TD


_opaque_gate = torch.library.custom_op("aerie::attention_gate", _gate, mutates_args=())


@_opaque_gate.register_fake
def _(x_TK: torch.Tensor, weight_GK: torch.Tensor, attended_TD: torch.Tensor) -> torch.Tensor:
    return attended_TD.new_empty(attended_TD.shape)


def gate_attention(x_TK: torch.Tensor, weight_GK: torch.Tensor, attended_TD: torch.Tensor) -> torch.Tensor:
    """The operator of this file's docstring; returns y [T, D], contiguous.

    Args:
        x_TK: what queries, keys and values were projected from.
        weight_GK: the gate's projection, contiguous.
        attended_TD: the attention's output.

    Raises:
        ImportError: Triton is needed and not installed.
        TypeError: dtypes differ, or bfloat16 is bound for Triton's interpreter.
        ValueError: shapes, strides or devices do not fit.
    """
    gates, channels = weight_GK.shape[0], attended_TD.shape[-1]
    if channels % gates or x_TK.shape[-1] != weight_GK.shape[-1] or x_TK.shape[0] != attended_TD.shape[0]:
        shapes = f"{list(x_TK.shape)}, {list(weight_GK.shape)} and {list(attended_TD.shape)}"
        raise ValueError(f"x [T, K], weight [G, K] and attended [T, D], D a multiple of G, have shapes {shapes}")
    if {x_TK.dtype, weight_GK.dtype} != {attended_TD.dtype}:
        raise TypeError(f"x is {x_TK.dtype}, weight {weight_GK.dtype}, attended {attended_TD.dtype}: give one dtype")
    if x_TK.stride(-1) != 1 or attended_TD.stride(-1) != 1 or not weight_GK.is_contiguous():
        raise ValueError("rows of x and attended must be without gaps, and the weight contiguous")
    # A custom operator costs 10 us a call in Python: eager code goes straight in.
    gate = _opaque_gate if torch.compiler.is_compiling() else _gate
    gated_TD: torch.Tensor = gate(x_TK, weight_GK, attended_TD)
    return gated_TD
