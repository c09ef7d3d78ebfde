# SPDX-License-Identifier: Apache-2.0
"""Watches a training: its curve goes to the journal, heads go to the engine to have their acceptance measured."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from aerie.draft_models.checkpoint import write_draft
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft import journal
from aerie.trainer.draft.export import tensors_of
from aerie.trainer.draft.journal import Journal, numbered
from aerie.trainer.draft.loop import Entry, Update
from aerie.trainer.draft.recipe import DraftRecipe
from aerie.trainer.draft.served import Measurement, ServedAcceptance


class Recorder:
    """A watcher of the loop, and a context manager; `active` is false for all processes but the first."""

    def __init__(self, recipe: DraftRecipe, folder: Path, log: Callable[[str], None], active: bool = True) -> None:
        self._weights, self._folder, self._log, self._active = recipe.weights, folder, log, active
        self._stack = ExitStack()
        self._journal: Journal | None = None
        self._served: ServedAcceptance | None = None
        if recipe.served is not None and active:
            self._served = ServedAcceptance(recipe.target, recipe.served, folder / "served", log)
        self._measured: dict[int, Measurement] = {}

    def __enter__(self) -> Self:
        if self._served is not None:
            self._stack.enter_context(self._served)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def started(self, update: int) -> None:
        """Open the journal where the checkpoint stands."""
        self._journal = self._stack.enter_context(Journal(self._folder, update, self._log))
        if self._served is not None:
            self._served.resume(update)

    def updated(self, update: Update) -> None:
        """Write an update's scalars, and what the engine found meanwhile."""
        shares = [hits / max(1, seen) for hits, seen in zip(update.hits_S, update.seen_S, strict=True)]
        self._write(
            update.number,
            {
                "training/loss": update.loss,
                "training/learning_rate": update.learning_rate,
                "training/tokens_per_second": update.tokens / update.seconds,
                **numbered("training/accuracy", shares),
            },
        )
        self._collect()

    def epoch_ended(self, entry: Entry) -> None:
        """Write an epoch's evaluation."""
        scalars = {"simulated/loss": entry["loss"], **numbered("simulated/tau", entry["length_K"])}
        self._write(entry["update"], scalars)

    def snapshot(self, update: int, head: Eagle3Head) -> None:
        """Have the head measured, unless an earlier one still is."""
        if self._served is not None and not self._served.busy:
            folder = self._served.draft_folder(update)
            write_draft(folder, head.config, tensors_of(head, self._weights), {"update": update})
            self._served.start(folder, update)

    def measure(self, draft: Path, update: int) -> list[Measurement]:
        """Measure the finished head, if measuring is wanted; everything measured, ascending by update."""
        if self._served is not None:
            self._take(self._served.wait())
            if update not in self._measured:
                self._served.start(draft, update)
                self._take(self._served.wait())
        return [self._measured[number] for number in sorted(self._measured)]

    def entries(self) -> list[journal.Entry]:
        """The whole curve."""
        return self._journal.entries() if self._journal is not None else []

    def _collect(self) -> None:
        if self._served is not None:
            self._take(self._served.collect())

    def _take(self, measured: list[Measurement]) -> None:
        for one in measured:
            self._measured[one.update] = one
            self._write(one.update, one.scalars())
            self._log(
                f"update {one.update}: acceptance length {one.overall.length:.2f} in vLLM, K = {one.draft_tokens}"
            )

    def _write(self, update: int, scalars: dict[str, float]) -> None:
        if self._journal is not None:
            self._journal.write(update, scalars)
