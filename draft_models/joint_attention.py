# SPDX-License-Identifier: Apache-2.0
"""Attention of the training-time test: one softmax over step 0's keys joined with one key per later step.

At step s, the query of row i sees step 0's keys up to i and the keys that steps 1..s made for the same row: those are
s diagonal scores, never an L x L block. With Z the sum of exponentials over both parts,

    out_i = sum_j exp(q_i k_j) v_j / Z_i  +  sum_t exp(q_i k_i^t) v_i^t / Z_i.

A flash kernel gives the first part with its own log-sum-exp; rescaling by it and the diagonal scores gives `out`. The
backward pass of the same kernel, called with the *joint* output and log-sum-exp, yields the joint softmax's exact
gradients for the block, because it rebuilds P = exp(qk - lse) and D = out . grad from them. No score is stored.

Shapes: B documents, G key-value heads, R query rows (query heads of a group x anchors), L keys, D head size, T
diagonal keys.
"""

import math
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

_ATEN = torch.ops.aten


class _Context(FunctionCtx):
    """What torch sets but its stub leaves out."""

    saved_tensors: tuple[Tensor, ...]


class _JointAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        q_BGRD: Tensor,
        k_BGLD: Tensor,
        v_BGLD: Tensor,
        k_BGRTD: Tensor,
        v_BGRTD: Tensor,
        bias_B1RL: Tensor,
    ) -> Tensor:
        scale = 1 / math.sqrt(q_BGRD.shape[-1])
        block, lse_BGR = _ATEN._scaled_dot_product_flash_attention_for_cpu(
            q_BGRD, k_BGLD, v_BGLD, 0.0, False, attn_mask=bias_B1RL, scale=scale
        )
        diagonal_BGRT = (q_BGRD.unsqueeze(-2) * k_BGRTD).sum(-1).float() * scale
        joint_BGR = torch.logsumexp(torch.cat([lse_BGR.unsqueeze(-1), diagonal_BGRT], dim=-1), dim=-1)
        p_BGRT = torch.exp(diagonal_BGRT - joint_BGR.unsqueeze(-1))
        out: Tensor = block * torch.exp(lse_BGR - joint_BGR).unsqueeze(-1).to(block.dtype)
        out = out + (p_BGRT.to(block.dtype).unsqueeze(-1) * v_BGRTD).sum(-2)
        ctx.save_for_backward(q_BGRD, k_BGLD, v_BGLD, k_BGRTD, v_BGRTD, bias_B1RL, out, joint_BGR, p_BGRT)
        return out

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        q, k, v, k_t, v_t, bias, out, joint, p_BGRT = ctx.saved_tensors
        scale = 1 / math.sqrt(q.shape[-1])
        dq, dk, dv = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, joint, 0.0, False, attn_mask=bias, scale=scale
        )
        inner_BGR1 = (grad * out).sum(-1, keepdim=True)
        ds_BGRT = p_BGRT * ((grad.unsqueeze(-2) * v_t).sum(-1) - inner_BGR1).float() * scale
        ds_BGRT1 = ds_BGRT.to(q.dtype).unsqueeze(-1)
        dq = dq + (ds_BGRT1 * k_t).sum(-2)
        return dq, dk, dv, ds_BGRT1 * q.unsqueeze(-2), p_BGRT.to(q.dtype).unsqueeze(-1) * grad.unsqueeze(-2), None


def joint_attention(
    q_BGRD: Tensor, k_BGLD: Tensor, v_BGLD: Tensor, k_BGRTD: Tensor, v_BGRTD: Tensor, bias_B1RL: Tensor
) -> Tensor:
    """The joint softmax above, [B, G, R, D]; `bias_B1RL` is 0 where a row sees a key of step 0 and -inf elsewhere.

    Every row must see at least one key of step 0. T may be 0 (step 0 itself).
    """
    arguments = (q_BGRD, k_BGLD, v_BGLD, k_BGRTD, v_BGRTD, bias_B1RL)
    if q_BGRD.device.type == "cpu":
        return cast(Tensor, _JointAttention.apply(*arguments))  # type: ignore[no-untyped-call]  # torch's stub
    return joint_attention_reference(*arguments)


def joint_attention_reference(
    q_BGRD: Tensor, k_BGLD: Tensor, v_BGLD: Tensor, k_BGRTD: Tensor, v_BGRTD: Tensor, bias_B1RL: Tensor
) -> Tensor:
    """The same in plain operations, every score stored: any device, and the twin the tests compare with."""
    scale = 1 / math.sqrt(q_BGRD.shape[-1])
    block_BGRL = q_BGRD @ k_BGLD.mT * scale + bias_B1RL
    diagonal_BGRT = (q_BGRD.unsqueeze(-2) * k_BGRTD).sum(-1) * scale
    scores = torch.cat([block_BGRL, diagonal_BGRT], dim=-1)
    p_BGRM, keys = scores.softmax(-1), k_BGLD.shape[-2]
    return p_BGRM[..., :keys] @ v_BGLD + (p_BGRM[..., keys:].unsqueeze(-1) * v_BGRTD).sum(-2)
