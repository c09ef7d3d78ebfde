# SPDX-License-Identifier: Apache-2.0
"""What is optimised, and by what: the head with its loss as one module, and AdamW in groups."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import Batch
from aerie.trainer.draft.initial import GATE, OUTPUT
from aerie.trainer.draft.loss import Outcome, training_time_test
from aerie.trainer.draft.recipe import Training
from aerie.trainer.draft.target import Teacher


class Objective(nn.Module):
    """The head with what its loss needs, as one module that data-parallel wrappers can call."""

    def __init__(self, head: Eagle3Head, teacher: Teacher, training: Training) -> None:
        super().__init__()
        self.head, self.settings = head, training
        self.teacher = teacher

    def forward(self, batch: Batch, counts_S: Tensor, on_policy: bool) -> Outcome:
        """`training_time_test` as the recipe wants it; on policy the visits themselves are the steps' weights."""
        settings = self.settings
        decay = 1.0 if on_policy else settings.step_decay
        with parametrize.cached():
            return training_time_test(
                self.head, self.teacher, batch, settings.steps, decay, settings.loss, counts_S, on_policy
            )


def optimizer_for(head: Eagle3Head, training: Training) -> torch.optim.Optimizer:
    """AdamW; norms are not decayed, and a gated head's output projection moves as a plain head's would.

    That projection starts doubled against a gate of 1/2 (initial.py). Twice the step and half the decay make it the
    plain head's projection in other units, so both follow the same path until the gate says otherwise.
    """
    doubled = 2.0 if head.config.gate != "none" else 1.0
    scales = {OUTPUT: (doubled, 1 / doubled), GATE: (training.gate_learning_rate, 1.0)}
    groups: list[dict[str, Any]] = []
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            rate, decay = scales.get(name, (1.0, 1.0))
            decay *= training.weight_decay if parameter.dim() > 1 else 0.0
            groups.append({"params": [parameter], "scale": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=True)
