# SPDX-License-Identifier: Apache-2.0
"""The loss of the training-time test: soft cross-entropy to the target over the draft vocabulary, at every step.

    loss = sum_s decay^s * mean over step s's rows of ( logsumexp(z) - p . z ),   z the head's logits, p the teacher's

(Eagle-3, arXiv 2503.01840 §3.2). A row counts at step s when it is a chain: the s rows before it are its direct
predecessors in the same answer, so neither padding, another document nor a user's turn is ever supervised; and when
the target's own choice can be drafted, since p renormalised over the draft vocabulary means nothing where it cannot.

Shapes: B documents, R rows, S steps, M = B * R, H hidden, V draft vocabulary.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import Batch
from aerie.trainer.draft.target import Teacher


class _Context(FunctionCtx):
    """What torch sets but its stub leaves out."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _SoftCrossEntropy(torch.autograd.Function):
    """Projects, compares and differentiates in one pass, so that M x V logits are written once and never stored."""

    @staticmethod
    def forward(
        ctx: _Context, normed_MH: Tensor, head_VH: Tensor, p_MV: Tensor, weight_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        z_MV = (normed_MH @ head_VH.T).float()
        lse_M1 = z_MV.logsumexp(-1, keepdim=True)
        loss = torch.dot(lse_M1.squeeze(-1) - torch.linalg.vecdot(p_MV, z_MV), weight_M)
        predicted_M = z_MV.argmax(-1)
        if any(ctx.needs_input_grad):
            dz_MV = z_MV.sub_(lse_M1).exp_().sub_(p_MV).mul_(weight_M[:, None]).to(head_VH.dtype)
            ctx.save_for_backward(dz_MV @ head_VH, dz_MV.T @ normed_MH)
        ctx.mark_non_differentiable(predicted_M)
        return loss, predicted_M

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_normed_MH, d_head_VH = ctx.saved_tensors
        return d_normed_MH * grads[0], d_head_VH * grads[0], None, None


def soft_cross_entropy(normed_MH: Tensor, head_VH: Tensor, p_MV: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of weight * cross-entropy of `p_MV` against softmax(normed head^T), argmax of the logits [M])."""
    result = _SoftCrossEntropy.apply(normed_MH, head_VH, p_MV, weight_M)  # type: ignore[no-untyped-call]  # torch's stub
    return cast(tuple[Tensor, Tensor], result)


@dataclass(frozen=True)
class Outcome:
    """What one batch gave."""

    loss: Tensor
    hits_SBR: Tensor
    """Whether step s of the chain that starts at row r predicts the target's choice."""
    chained_SBR: Tensor
    """Whether row r has a step s at all."""


def chained(rows_BR: Tensor, row_mask_BR: Tensor, s: int) -> Tensor:
    """Whether row r is the s-th successor of row r - s in the same answer, [B, R]."""
    if s == 0:
        return row_mask_BR
    before = F.pad(rows_BR[:, :-s], (s, 0), value=-(10**9))
    return row_mask_BR & (rows_BR - s == before)


def shifted(x_BR: Tensor, s: int) -> Tensor:
    """Move columns by `s` to the right, filling with zeros; works on [B, R] and [B, R, H]."""
    return x_BR if s == 0 else F.pad(x_BR[:, :-s], (0, 0) * (x_BR.dim() - 2) + (s, 0))


def training_time_test(head: Eagle3Head, teacher: Teacher, batch: Batch, steps: int, decay: float) -> Outcome:
    """Unroll the head over a batch on the target's own tokens; the loss and what was predicted."""
    steps = min(steps, batch.rows_BR.shape[1])
    ids_V = head.target_ids_V
    with torch.no_grad():
        # Once for all steps: step s of row r has the teacher of row r + s.
        p_BRV = teacher.logits(batch.final_BRH, ids_V).float().softmax(-1)
        draftable_BR = head.t2d[batch.choices_BR] if head.config.maps_vocabulary else batch.row_mask_BR
    hidden_BLH = head.fuse(batch.aux_BLA)
    state = head.unroll(batch.next_ids_BL, hidden_BLH, batch.rows_BR, steps)
    hidden = hidden_BLH.gather(1, batch.rows_BR.unsqueeze(-1).expand(-1, -1, hidden_BLH.shape[-1]))
    loss, hits, chains = hidden.new_zeros(()), [], []
    for s in range(steps):
        normed, hidden = head.step(s, hidden, state)
        chained_BR = chained(batch.rows_BR, batch.row_mask_BR, s)
        weight_BR = (chained_BR & draftable_BR).float()
        weight_BR = weight_BR * (decay**s / weight_BR.sum().clamp(min=1))
        part, predicted = soft_cross_entropy(
            shifted(normed, s).flatten(0, 1), head.lm_head.weight, p_BRV.flatten(0, 1), weight_BR.flatten()
        )
        loss = loss + part
        hit_BR = (ids_V[predicted].view_as(batch.choices_BR) == batch.choices_BR) & chained_BR
        # Back from the teacher's row to the row where the chain starts.
        hits.append(F.pad(hit_BR[:, s:], (0, s)))
        chains.append(F.pad(chained_BR[:, s:], (0, s)))
    return Outcome(loss, torch.stack(hits), torch.stack(chains))
