# SPDX-License-Identifier: Apache-2.0
"""The live line of a training: throughput, loss, accuracy per step, simulated acceptance length."""

from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aerie.trainer.draft.data import Batch
from aerie.trainer.draft.evaluate import Acceptance
from aerie.trainer.draft.loss import Outcome


class TrainingProgress:
    """A rich progress bar over updates; a context manager."""

    def __init__(self, updates: int, done: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._task = self._progress.add_task("draft", total=updates, completed=done, text="")
        self._rate: float | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, epoch: int, outcome: Outcome, batch: Batch, seconds: float) -> None:
        """One update is done."""
        speed = batch.tokens / seconds
        self._rate = speed if self._rate is None else 0.95 * self._rate + 0.05 * speed
        seen = outcome.chained_SBR.flatten(1).sum(1).clamp(min=1)
        accuracy = " ".join(f"{one:.0%}" for one in (outcome.hits_SBR.flatten(1).sum(1) / seen).tolist())
        text = f"{self._rate:,.0f} tokens/s  loss {outcome.loss.item():.3f}  right {accuracy}"
        self._progress.update(self._task, advance=1, description=f"epoch {epoch}", text=text)

    def describe_epoch(self, acceptance: Acceptance) -> None:
        """Print a validation result above the bar."""
        lengths = " ".join(f"{length:.2f}" for length in acceptance.length_K)
        self._progress.print(f"validation: loss {acceptance.loss:.3f}, acceptance length for K = 1..: {lengths}")
