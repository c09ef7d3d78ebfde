# SPDX-License-Identifier: Apache-2.0
"""What a training will do, known from its start: phases, epochs, updates, batches, and the learning rate of each."""

import math
from dataclasses import dataclass
from typing import Literal

from aerie.trainer.draft.data import Source
from aerie.trainer.draft.recipe import Training


@dataclass(frozen=True)
class Phase:
    """Epochs that share one schedule."""

    name: Literal["supervised", "on_policy"]
    learning_rate: float
    plans: list[list[list[list[int]]]]
    """Epoch, update, batch: the documents of every batch."""

    @property
    def updates(self) -> int:
        """Of all epochs."""
        return sum(map(len, self.plans))


def schedule(update: int, updates: int, warmup: float) -> float:
    """Share of the peak learning rate for an update: linear rise, then a cosine to zero."""
    rising = max(1, round(warmup * updates))
    if update < rising:
        return (update + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (update - rising) / max(1, updates - rising)))


def phases_of(training: Training, data: Source) -> list[Phase]:
    """What will be done, from the start: padding makes epochs differ by a batch or two, and schedules need the sum."""

    def epochs(first: int, count: int) -> list[list[list[list[int]]]]:
        whole = [data.plan(training.batch_rows, training.seed, first + epoch) for epoch in range(count)]
        size = training.accumulate
        return [[batches[at : at + size] for at in range(0, len(batches), size)] for batches in whole]

    phases = [Phase("supervised", training.learning_rate, epochs(0, training.epochs))]
    if (policy := training.on_policy) is not None:
        phases.append(Phase("on_policy", policy.learning_rate, epochs(training.epochs, policy.epochs)))
    return phases
