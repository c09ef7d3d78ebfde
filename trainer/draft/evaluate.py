# SPDX-License-Identifier: Apache-2.0
"""Simulated acceptance: how far the target would have followed the head's greedy chains.

On greedy answers this is what the engine does at temperature 0: a draft is accepted while it equals the target's
choice, and then the next accepted input is the answer's own next token. The engine's walk is simulated: after a step
that accepted a tokens the next step starts a + 1 tokens later. Length = 1 + accepted / steps, pooled over documents.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import Source
from aerie.trainer.draft.loss import training_time_test
from aerie.trainer.draft.parallel import moved
from aerie.trainer.draft.target import Teacher


@dataclass(frozen=True)
class Acceptance:
    """Pooled over the documents of one capture."""

    loss: float
    accuracy_S: list[float]
    """Share of rows predicted right at step s, fed with the target's tokens."""
    length_K: list[float]
    """Simulated mean acceptance length, the target's own token included, when 1, 2, ... S tokens are drafted."""
    accepted_at_S: list[float]
    """Share of the engine's steps that accept draft s, when S are drafted."""

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def walk(accepted_R: list[int], rows: int) -> list[int]:
    """Accepted drafts of each engine step over one answer of `rows` rows."""
    steps, at = [], 0
    while at < rows:
        steps.append(accepted_R[at])
        at += accepted_R[at] + 1
    return steps


@torch.no_grad()
def evaluate(head: Eagle3Head, teacher: Teacher, data: Source, steps: int, decay: float, batch_rows: int) -> Acceptance:
    """Run every document once."""
    losses, weights = 0.0, 0
    right_S, seen_S = torch.zeros(steps), torch.zeros(steps)
    histograms = [torch.zeros(drafted + 1, dtype=torch.long) for drafted in range(1, steps + 1)]
    for indices in data.plan(batch_rows, seed=0, epoch=0):
        batch = moved(data.batch(indices), head.embed_WH.device)
        outcome = training_time_test(head, teacher, batch, steps, decay)
        done = len(outcome.hits_SBR)
        right_S[:done] += outcome.hits_SBR.flatten(1).sum(1).cpu()
        seen_S[:done] += outcome.chained_SBR.flatten(1).sum(1).cpu()
        rows_B = batch.row_mask_BR.sum(1).tolist()
        losses, weights = losses + float(outcome.loss) * sum(rows_B), weights + sum(rows_B)
        for drafted, histogram in enumerate(histograms, 1):
            _count(outcome.hits_SBR[:drafted], rows_B, histogram)
    widest = histograms[-1].double()
    reached = widest.flip(0).cumsum(0).flip(0)[1:] / widest.sum()
    lengths = [float((torch.arange(len(one)) * one).sum() / one.sum()) + 1 for one in histograms]
    return Acceptance(losses / weights, (right_S / seen_S.clamp(min=1)).tolist(), lengths, reached.tolist())


def _count(hits_SBR: Tensor, rows_B: list[int], histogram: Tensor) -> None:
    accepted_BR = hits_SBR.long().cumprod(0).sum(0).tolist()
    for accepted_R, rows in zip(accepted_BR, rows_B, strict=True):
        for accepted in walk(accepted_R, rows):
            histogram[accepted] += 1
