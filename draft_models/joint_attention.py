# SPDX-License-Identifier: Apache-2.0
"""Attention of the training-time test: one softmax over step 0's keys joined with one key per later step.

At step s, the query of row i sees step 0's keys up to i and the keys that steps 1..s made for the same row: those are
s diagonal scores, never an L x L block. With Z the sum of exponentials over both parts,

    out_i = sum_j exp(q_i k_j) v_j / Z_i  +  sum_t exp(q_i k_i^t) v_i^t / Z_i.

A flash kernel gives the first part with its own log-sum-exp; rescaling by it and the diagonal scores gives `out`. The
backward pass of the same kernel, called with the *joint* output and log-sum-exp, yields the joint softmax's exact
gradients for the block, because it rebuilds P = exp(qk - lse) and D = out . grad from them. No score is stored.

On a CPU that kernel is torch's flash attention, whose mask is a bias of R x L. Elsewhere it is torch's flex attention,
which gives the log-sum-exp too and differentiates through it; its mask is a function and a table of blocks. Either mask
is made once for all steps.

Shapes: B documents, G key-value heads, R query rows (query heads of a group x anchors), L keys, D head size, T
diagonal keys.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, create_block_mask, flex_attention

_ATEN = torch.ops.aten
Mask = Tensor | BlockMask
"""A bias [B, 1, R, L], 0 where a row sees a key and -inf elsewhere, or flex attention's."""


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


def causal_mask(rows_BA: Tensor, keys: int, heads: int, dtype: torch.dtype) -> Mask:
    """What every query row may see of step 0's keys: anchor i those up to position `rows_BA[:, i]`.

    The rows of a group's `heads` query heads lie one after another, R = heads * A.
    """
    if rows_BA.device.type == "cpu":
        hidden_B1AL = torch.arange(keys) > rows_BA[:, None, :, None]
        bias_B1AL = torch.zeros(hidden_B1AL.shape, dtype=dtype).masked_fill_(hidden_B1AL, float("-inf"))
        return bias_B1AL.repeat(1, 1, heads, 1)
    return flex_mask(rows_BA, keys, heads)


def flex_mask(rows_BA: Tensor, keys: int, heads: int) -> BlockMask:
    """The same for flex attention, on any device."""
    batch, anchors = rows_BA.shape

    def seen(document: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return key <= rows_BA[document, row % anchors]

    return create_block_mask(seen, batch, None, heads * anchors, keys, device=str(rows_BA.device))


def joint_attention(
    q_BGRD: Tensor, k_BGLD: Tensor, v_BGLD: Tensor, k_BGRTD: Tensor, v_BGRTD: Tensor, mask: Mask
) -> Tensor:
    """The joint softmax above, [B, G, R, D]; `mask` is what `causal_mask` made on the same device.

    Every row must see at least one key of step 0. T may be 0 (step 0 itself).
    """
    arguments = (q_BGRD, k_BGLD, v_BGLD, k_BGRTD, v_BGRTD)
    if isinstance(mask, BlockMask):
        # Uncompiled, flex attention stores every score: correct, and only for tests.
        flex: Any = compiled_flex() if q_BGRD.device.type == "cuda" else flex_attention
        return joined_with_flex(flex, *arguments, mask)
    if q_BGRD.device.type == "cpu":
        return cast(Tensor, _JointAttention.apply(*arguments, mask))  # type: ignore[no-untyped-call]  # torch's stub
    return joint_attention_reference(*arguments, mask)


@functools.cache
def compiled_flex() -> Callable[..., tuple[Tensor, AuxOutput]]:
    """Flex attention as one kernel, for any lengths."""
    return cast(Callable[..., tuple[Tensor, AuxOutput]], torch.compile(flex_attention, dynamic=True))


def joined_with_flex(
    flex: Callable[..., Any],
    q_BGRD: Tensor,
    k_BGLD: Tensor,
    v_BGLD: Tensor,
    k_BGRTD: Tensor,
    v_BGRTD: Tensor,
    mask: BlockMask,
) -> Tensor:
    """The joint softmax from a block that knows its log-sum-exp; autograd follows both."""
    scale = 1 / math.sqrt(q_BGRD.shape[-1])
    block, aux = flex(q_BGRD, k_BGLD, v_BGLD, block_mask=mask, scale=scale, return_aux=AuxRequest(lse=True))
    lse_BGR1 = aux.lse.unsqueeze(-1)
    diagonal_BGRT = (q_BGRD.unsqueeze(-2) * k_BGRTD).sum(-1).float() * scale
    joint_BGR1 = torch.logsumexp(torch.cat([lse_BGR1, diagonal_BGRT], dim=-1), dim=-1, keepdim=True)
    p_BGRT = torch.exp(diagonal_BGRT - joint_BGR1).to(block.dtype)
    out: Tensor = block * torch.exp(lse_BGR1 - joint_BGR1).to(block.dtype)
    return out + (p_BGRT.unsqueeze(-1) * v_BGRTD).sum(-2)


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
