# SPDX-License-Identifier: Apache-2.0
"""The loss of the training-time test: how far the head is from the target, at every step of its chains.

    loss = sum_s decay^s * mean over step s's rows of D(p, q),   q the head's distribution, p the target's

(Eagle-3, arXiv 2503.01840 §3.2). A row counts at step s when it is a chain: the s rows before it are its direct
predecessors in the same answer, so neither padding, another document nor a user's turn is ever supervised; and when
the target's own choice can be drafted, since p renormalised over the draft vocabulary means nothing where it cannot.

*On policy*, a chain counts at step s only while it is alive: while the answer goes on with what the head drafted. Those
are the states that the engine reaches with this very head, at any temperature: it drafts greedily, so it accepts a
draft exactly when the target's sample equals it, and since drafting is lossless the answers that the target gave
without the head are samples of that process. No answer has to be drawn anew while the head changes.

Shapes: B documents, R rows, S steps, M = B * R, H hidden, V draft vocabulary.
"""

from dataclasses import dataclass
from typing import Final, Literal, cast

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


Divergence = Literal["ce", "tv", "lk", "lk_hybrid"]
LK_ETA: Final = 3.0
"""How fast the hybrid moves from KL to total variation as the acceptance grows (arXiv 2602.23881, its best setting)."""
LEAST_ACCEPTANCE: Final = 1e-5


class _Divergence(torch.autograd.Function):
    """Projects, compares and differentiates in one pass, so that M x V logits are written once and never stored."""

    @staticmethod
    def forward(
        ctx: _Context, normed_MH: Tensor, head_VH: Tensor, p_MV: Tensor, weight_M: Tensor, kind: Divergence
    ) -> tuple[Tensor, Tensor]:
        z_MV = (normed_MH @ head_VH.T).float()
        most_M, predicted_M = z_MV.max(-1)
        expected_M = torch.linalg.vecdot(p_MV, z_MV)
        # Logits become probabilities in place, with one exponential each: on a CPU a seventh of the training's time.
        e_MV = z_MV.sub_(most_M[:, None]).exp_()
        sum_M = e_MV.sum(-1)
        cross_M = most_M + sum_M.log() - expected_M
        q_MV = e_MV.div_(sum_M[:, None])
        if kind == "ce":
            loss_M, dz_MV = cross_M, q_MV.sub_(p_MV)
        else:
            loss_M, dz_MV = _by_acceptance(kind, q_MV, p_MV, cross_M)
        loss = torch.dot(loss_M, weight_M)
        if any(ctx.needs_input_grad):
            dz_MV = dz_MV.mul_(weight_M[:, None]).to(head_VH.dtype)
            # Output rows that are frozen need no gradient, a third of the loss's work.
            d_head_VH = dz_MV.T @ normed_MH if ctx.needs_input_grad[1] else head_VH.new_empty(0)
            ctx.save_for_backward(dz_MV @ head_VH, d_head_VH)
        ctx.mark_non_differentiable(predicted_M)
        return loss, predicted_M

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_normed_MH, d_head_VH = ctx.saved_tensors
        d_head = d_head_VH * grads[0] if ctx.needs_input_grad[1] else None
        return d_normed_MH * grads[0], d_head, None, None, None


def _by_acceptance(kind: Divergence, q_MV: Tensor, p_MV: Tensor, cross_M: Tensor) -> tuple[Tensor, Tensor]:
    """Loss per row and its gradient by the logits, for the kinds made of the acceptance a = sum min(p, q)."""
    below_MV = (q_MV < p_MV).to(q_MV.dtype)
    alpha_M = torch.minimum(p_MV, q_MV).sum(-1)
    # da/dz = q (1[q < p] - sum over those of q)
    gain_MV = q_MV * (below_MV - (below_MV * q_MV).sum(-1, keepdim=True))
    if kind == "tv":
        return 1 - alpha_M, -gain_MV
    if kind == "lk":
        alpha_M = alpha_M.clamp(min=LEAST_ACCEPTANCE)
        return -alpha_M.log(), -gain_MV / alpha_M[:, None]
    mix_M = torch.exp(-LK_ETA * alpha_M)
    kl_M = cross_M + torch.special.xlogy(p_MV, p_MV).sum(-1)
    mix_M1 = mix_M[:, None]
    return mix_M * kl_M + (1 - mix_M) * (1 - alpha_M), mix_M1 * (q_MV - p_MV) - (1 - mix_M1) * gain_MV


def divergence(
    normed_MH: Tensor, head_VH: Tensor, p_MV: Tensor, weight_M: Tensor, kind: Divergence = "ce"
) -> tuple[Tensor, Tensor]:
    """(sum of weight * D(p, softmax(normed head^T)), argmax of the logits [M]).

    D is the soft cross-entropy (`ce`: the gradient of KL); total variation (`tv`), which is the share of drafts that
    rejection sampling refuses; -log of the share it accepts (`lk`); or the mixture exp(-3a) KL + (1 - exp(-3a)) TV of
    the LK paper (`lk_hybrid`, arXiv 2602.23881), a the acceptance, not differentiated in the weights.
    """
    result = _Divergence.apply(normed_MH, head_VH, p_MV, weight_M, kind)  # type: ignore[no-untyped-call]  # torch's stub
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


def draftable(head: Eagle3Head, batch: Batch) -> Tensor:
    """Whether the target's choice at each row is in the draft vocabulary, [B, R]."""
    return head.t2d[batch.choices_BR] if head.config.maps_vocabulary else batch.row_mask_BR


def row_counts(head: Eagle3Head, batch: Batch, steps: int) -> Tensor:
    """How many rows each step supervises, [S]: what the steps' means divide by."""
    known_BR = draftable(head, batch)
    chains = (chained(batch.rows_BR, batch.row_mask_BR, s) & known_BR for s in range(steps))
    return torch.stack([one.sum() for one in chains]).float()


def training_time_test(
    head: Eagle3Head,
    teacher: Teacher,
    batch: Batch,
    steps: int,
    decay: float,
    kind: Divergence = "ce",
    counts_S: Tensor | None = None,
    on_policy: bool = False,
) -> Outcome:
    """Unroll the head over a batch on the target's own tokens; the loss and what was predicted.

    `counts_S` is what each step's sum is divided by when the batch is a part of a larger one; None for its own rows.
    """
    ids_V = head.target_ids_V
    counts_S = row_counts(head, batch, steps) if counts_S is None else counts_S
    steps = min(steps, batch.rows_BR.shape[1])
    with torch.no_grad():
        # Once for all steps: step s of row r has the teacher of row r + s.
        p_BRV = teacher.logits(batch.final_BRH, ids_V).float().softmax(-1)
        draftable_BR = draftable(head, batch)
    hidden_BLH = head.fuse(batch.aux_BLA)
    state = head.unroll(batch.next_ids_BL, hidden_BLH, batch.rows_BR, steps)
    hidden = hidden_BLH.gather(1, batch.rows_BR.unsqueeze(-1).expand(-1, -1, hidden_BLH.shape[-1]))
    loss, hits, chains = hidden.new_zeros(()), [], []
    alive_BR = batch.row_mask_BR
    for s in range(steps):
        normed, hidden = head.step(s, hidden, state)
        chained_BR = chained(batch.rows_BR, batch.row_mask_BR, s)
        weight_BR = (chained_BR & draftable_BR & alive_BR).float() * (decay**s / counts_S[s].clamp(min=1))
        part, predicted = divergence(
            shifted(normed, s).flatten(0, 1), head.lm_head.weight, p_BRV.flatten(0, 1), weight_BR.flatten(), kind
        )
        loss = loss + part
        drafted_BR = ids_V[predicted].view_as(batch.choices_BR)
        hit_BR = (drafted_BR == batch.choices_BR) & chained_BR
        if on_policy:
            alive_BR = shifted((drafted_BR == batch.drawn_BR) & chained_BR & alive_BR, 1)
        # Back from the teacher's row to the row where the chain starts.
        hits.append(F.pad(hit_BR[:, s:], (0, s)))
        chains.append(F.pad(chained_BR[:, s:], (0, s)))
    return Outcome(loss, torch.stack(hits), torch.stack(chains))
