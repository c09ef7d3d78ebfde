# SPDX-License-Identifier: Apache-2.0
"""How far two trainers are apart in loss and gradients on documents where both supervise the same."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from aerie.benchmarks.training.problem import DECAY
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import padded
from aerie.trainer.draft.loss import training_time_test
from aerie.trainer.draft.shards import Document
from aerie.trainer.draft.target import Teacher

Solution = tuple[float, dict[str, Tensor]]
"""Loss, and gradients by the names of our parameters."""
Solve = Callable[[Eagle3Head, Teacher, Document, int, float], Solution]


def ours(head: Eagle3Head, teacher: Teacher, document: Document, steps: int, decay: float) -> Solution:
    """What our trainer computes for one document."""
    head.zero_grad()
    loss = training_time_test(head, teacher, padded([document]), steps, decay).loss
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in head.named_parameters() if one.grad is not None}
    head.zero_grad()
    return loss.item(), gradients


def gradient_difference(mine: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference of an entry, relative to the largest entry of its tensor; over all tensors."""
    if mine.keys() != other.keys():
        raise ValueError(f"gradients of different parameters: {sorted(mine.keys() ^ other.keys())}")
    return max(float((mine[name] - one).abs().max() / one.abs().max()) for name, one in other.items())


def agreement(
    theirs: Solve, head: Eagle3Head, teacher: Teacher, documents: Sequence[Document], all_steps: Sequence[int]
) -> dict[str, float]:
    """Largest relative difference of loss and of gradients over wholly supervised documents and numbers of steps."""
    losses, gradients = [], []
    for document in documents:
        for steps in all_steps:
            expected, other = theirs(head, teacher, document, steps, DECAY)
            loss, mine = ours(head, teacher, document, steps, DECAY)
            losses.append(abs(loss - expected) / abs(expected))
            gradients.append(gradient_difference(mine, other))
    return {"loss_difference": max(losses), "gradient_difference": max(gradients)}
