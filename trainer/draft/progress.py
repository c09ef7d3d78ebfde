# SPDX-License-Identifier: Apache-2.0
"""How far a training is: throughput, loss, accuracy per step, simulated acceptance length."""

from typing import Self

from aerie.draft_models.modeling import Eagle3Head
from aerie.progress import Bar
from aerie.trainer.draft.loop import Entry, Update


class TrainingProgress:
    """A bar over updates; a context manager and a watcher of the loop."""

    def __init__(self, updates: int, hidden: bool = False) -> None:
        self._bar = Bar("training", updates, "updates", hidden=hidden)
        self._rate: float | None = None

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.say(text)

    def started(self, update: int) -> None:
        """Show where an earlier run stopped."""
        self._bar.begin_at(update)

    def updated(self, update: Update) -> None:
        """One update is done."""
        speed = update.tokens / update.seconds
        self._rate = speed if self._rate is None else 0.95 * self._rate + 0.05 * speed
        pairs = zip(update.hits_S, update.seen_S, strict=True)
        accuracy = " ".join(f"{hits / max(1, seen):.0%}" for hits, seen in pairs)
        text = f"{self._rate:,.0f} tokens/s, loss {update.loss:.3f}, right {accuracy}"
        phase = update.phase.replace("_", " ")
        self._bar.update(update.number, text, f"training, {phase}, epoch {update.epoch}")

    def epoch_ended(self, entry: Entry) -> None:
        """Print a validation result above the bar."""
        lengths = " ".join(f"{length:.2f}" for length in entry["length_K"])
        self.say(f"validation: loss {entry['loss']:.3f}, acceptance length for K = 1..: {lengths}")

    def snapshot(self, update: int, head: Eagle3Head) -> None:
        """Nothing to show."""
