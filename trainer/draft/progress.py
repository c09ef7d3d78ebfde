# SPDX-License-Identifier: Apache-2.0
"""The live line of a training: throughput, loss, accuracy per step, simulated acceptance length."""

from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.loop import Entry, Update


class TrainingProgress:
    """A rich progress bar over updates; a context manager and a watcher of the loop."""

    def __init__(self, updates: int, hidden: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            disable=hidden,
        )
        self._task = self._progress.add_task("draft", total=updates, text="")
        self._rate: float | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.print(text)

    def started(self, update: int) -> None:
        """Show where an earlier run stopped."""
        self._progress.update(self._task, completed=update)

    def updated(self, update: Update) -> None:
        """One update is done."""
        speed = update.tokens / update.seconds
        self._rate = speed if self._rate is None else 0.95 * self._rate + 0.05 * speed
        pairs = zip(update.hits_S, update.seen_S, strict=True)
        accuracy = " ".join(f"{hits / max(1, seen):.0%}" for hits, seen in pairs)
        text = f"{self._rate:,.0f} tokens/s  loss {update.loss:.3f}  right {accuracy}"
        phase = update.phase.replace("_", " ")
        self._progress.update(
            self._task, completed=update.number, description=f"{phase}, epoch {update.epoch}", text=text
        )

    def epoch_ended(self, entry: Entry) -> None:
        """Print a validation result above the bar."""
        lengths = " ".join(f"{length:.2f}" for length in entry["length_K"])
        self.say(f"validation: loss {entry['loss']:.3f}, acceptance length for K = 1..: {lengths}")

    def snapshot(self, update: int, head: Eagle3Head) -> None:
        """Nothing to show."""
