# SPDX-License-Identifier: Apache-2.0
"""States that do not fit on disk: captured in chunks by an engine beside the training, deleted once trained on.

Documents are dealt into chunks once, each of at most half the budget. Every epoch visits the chunks in the same cycle
and shuffles within each; while one is trained on, a second process captures the next. Which documents form a batch, and
what is in it, depends on data, seed and epoch alone, so a killed training goes on bit for bit: it captures the chunk
that it was in again.
"""

import fcntl
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from aerie.trainer.draft.capture import (
    DOCUMENTS,
    TEACHER,
    Job,
    Opening,
    parts,
    read_description,
    shard_writer,
    state_bytes,
)
from aerie.trainer.draft.child import Child
from aerie.trainer.draft.data import Batch, Captured, occurrences, padded, plan, supervised_rows
from aerie.trainer.draft.recipe import Capture
from aerie.trainer.draft.regenerate import Answered, read_answers
from aerie.trainer.draft.shards import DataError, Document, read_shard, shard_path

DEALING_SEED = 0


def open_source(folder: Path, target: Path, settings: Capture) -> "Captured | Streamed":
    """What `capture` made of a folder. Raises DataError when there is nothing to train on."""
    return Streamed(folder, target, settings) if (folder / DOCUMENTS).exists() else Captured(folder)


class Streamed:
    """The documents of a capture folder without states, as a `Source`; a context manager that ends its engine."""

    def __init__(self, folder: Path, target: Path, settings: Capture) -> None:
        pairs = [(one, rows) for one in read_answers(folder / DOCUMENTS) if (rows := len(supervised_rows(_mask(one))))]
        if not pairs:
            raise DataError(f"{folder}: no answer is long enough to train on (at least two tokens)")
        self._documents, self._rows = [one for one, _ in pairs], [rows for _, rows in pairs]
        description = read_description(folder)
        self._ids = tuple(description["aux_hidden_state_layer_ids"])
        budget = int((settings.disk_budget_gib or 0) * 2**30) // 2
        per_token = state_bytes(1, len(self._ids), description["target"]["hidden_size"])
        self._chunks = _deal(list(map(len, self._documents)), budget // per_token)
        self._chunk_of = {index: number for number, chunk in enumerate(self._chunks) for index in chunk}
        self._folder, self._target, self._settings = folder, target, settings
        self._scratch, self._lock = _scratch(folder)
        self._child: Child[Job, None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aerie-capture")
        self._current: int | None = None
        self._loaded = dict[int, Document]()
        self._next: tuple[int, Future[None]] | None = None

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def row_counts(self) -> list[int]:
        """Rows of every document."""
        return self._rows

    @property
    def chunks(self) -> int:
        """How many parts an epoch is captured in."""
        return len(self._chunks)

    def token_counts(self, vocab_size: int, *, supervised_only: bool) -> Tensor:
        """How often each token occurs, [vocab_size]."""
        ids = [one.answer_ids if supervised_only else one.token_ids for one in self._documents]
        return occurrences([torch.tensor(one) for one in ids], vocab_size)

    def plan(self, batch_rows: int, seed: int, epoch: int) -> list[list[int]]:
        """Which documents form each batch of an epoch, in training order: chunk after chunk."""
        batches = []
        for number, chunk in enumerate(self._chunks):
            local = plan([self._rows[index] for index in chunk], batch_rows, seed, epoch * len(self._chunks) + number)
            batches += [[chunk[place] for place in batch] for batch in local]
        return batches

    def batch(self, indices: list[int]) -> Batch:
        """The documents of one of the plan's batches; waits while their chunk is being captured."""
        self._enter(self._chunk_of[indices[0]])
        return padded([self._loaded[index] for index in indices])

    def close(self) -> None:
        """End the engine and delete what it captured."""
        if self._child is not None:
            self._child.stop()
        self._thread.shutdown(cancel_futures=True)
        self._loaded.clear()
        shutil.rmtree(self._scratch, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _enter(self, chunk: int) -> None:
        if chunk == self._current:
            return
        if self._current is not None:
            # Files are mapped until the last tensor goes; only then does deleting them free the disk.
            self._loaded.clear()
            shutil.rmtree(self._place(self._current))
            self._current = None
        if self._next is not None and self._next[0] != chunk:
            self._next[1].result()
            shutil.rmtree(self._place(self._next[0]))
            self._next = None
        number, captured = self._next or (chunk, self._thread.submit(self._capture, chunk))
        captured.result()
        for documents, path in self._jobs(number):
            self._loaded |= zip(documents, read_shard(path), strict=True)
        self._current = number
        following = (number + 1) % len(self._chunks)
        self._next = (following, self._thread.submit(self._capture, following))

    def _capture(self, chunk: int) -> None:
        if self._child is None:
            longest = max(map(len, self._documents))
            opening = Opening(
                self._target, self._ids, self._settings, longest, self._folder / TEACHER, self._scratch / "states"
            )
            self._child = Child(shard_writer, opening)
        self._place(chunk).mkdir()
        for indices, path in self._jobs(chunk):
            self._child.ask(([self._documents[index] for index in indices], path))

    def _jobs(self, chunk: int) -> list[tuple[list[int], Path]]:
        """The documents of each of a chunk's shards."""
        by_document = {id(self._documents[index]): index for index in self._chunks[chunk]}
        shards = parts([self._documents[index] for index in self._chunks[chunk]], self._settings.shard_tokens)
        place = self._place(chunk)
        return [([by_document[id(one)] for one in part], shard_path(place, n)) for n, part in enumerate(shards)]

    def _place(self, chunk: int) -> Path:
        return self._scratch / f"chunk-{chunk:05}"


def _mask(one: Answered) -> Tensor:
    return torch.arange(len(one)) >= len(one.prompt_ids)


def _deal(lengths: list[int], tokens: int) -> list[list[int]]:
    """Documents into chunks of at most so many tokens, at random, the same way every time."""
    generator = torch.Generator().manual_seed(DEALING_SEED)
    chunks, filled = list[list[int]](), tokens + 1
    for index in torch.randperm(len(lengths), generator=generator).tolist():
        if filled + lengths[index] > tokens:
            chunks.append([])
            filled = 0
        chunks[-1].append(index)
        filled += lengths[index]
    return chunks


def _scratch(folder: Path) -> tuple[Path, int]:
    """A new folder beside `folder` and the lock that says it is in use; those of killed trainings are deleted."""
    prefix = f".stream-{folder.name}-"
    for stale in folder.parent.glob(f"{prefix}*"):
        handle = os.open(stale, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stale)
        except BlockingIOError:
            pass
        finally:
            os.close(handle)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    handle = os.open(made, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return made, handle
