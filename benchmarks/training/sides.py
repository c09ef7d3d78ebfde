# SPDX-License-Identifier: Apache-2.0
"""The two trainers over the same documents: forward, backward, clipping, one AdamW step per update.

Both are handed finished batches, so that neither pays for reading; both get the fused AdamW.
"""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from aerie.benchmarks.training import peer
from aerie.benchmarks.training.problem import DECAY
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import padded, plan, rows_of
from aerie.trainer.draft.loss import training_time_test
from aerie.trainer.draft.shards import Document
from aerie.trainer.draft.target import Teacher

LEARNING_RATE = 1e-3


class Stepper:
    """Applies gradients as both trainers do."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [one for one in parameters if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, fused=True)

    def step(self) -> None:
        """Clip, update, forget."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ours:
    """Our trainer: documents of like numbers of rows, padded."""

    arrangement = "padded"

    def __init__(self, head: Eagle3Head, teacher: Teacher, documents: list[Document], batch_rows: int) -> None:
        self.head, self.teacher, self.stepper = head, teacher, Stepper(head.parameters())
        groups = plan([len(rows_of(one)) for one in documents], batch_rows, seed=0, epoch=0)
        self.batches = [padded([documents[index] for index in group]) for group in groups]
        self.updates = len(self.batches)

    def epoch(self, steps: int) -> float:
        """Seconds for all documents."""
        began = time.perf_counter()
        for batch in self.batches:
            training_time_test(self.head, self.teacher, batch, steps, DECAY).loss.backward()
            self.stepper.step()
        return time.perf_counter() - began


class Theirs:
    """speculators: documents packed into rows of a fixed length by its own sampler, or each in a row of its own.

    It has no accumulation; `single`, whose rows carry no padding, gets as many documents per update as `per_update`.
    """

    def __init__(
        self, head: Eagle3Head, teacher: Teacher, documents: list[Document], positions: int | None, per_update: int
    ) -> None:
        self.model = peer.model_of(head, teacher)
        self.stepper = Stepper(self.model.parameters())
        self.arrangement = "single" if positions is None else f"packed{positions}"
        samples = [peer.sample(one) for one in documents]
        if positions is None:
            rows = [peer.row([one], len(one["input_ids"]) - 1) for one in samples]
            self.rows = [rows[start : start + per_update] for start in range(0, len(rows), per_update)]
        else:
            self.rows = [[one] for one in peer.packed(samples, positions)]
        self.updates = len(self.rows)

    def epoch(self, steps: int) -> float:
        """Seconds for all documents."""
        began = time.perf_counter()
        for update in self.rows:
            for row in update:
                loss: Tensor = peer.loss(self.model, row, steps, DECAY) / len(update)
                loss.backward()
            self.stepper.step()
        return time.perf_counter() - began
