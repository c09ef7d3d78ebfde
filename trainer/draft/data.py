# SPDX-License-Identifier: Apache-2.0
"""Captured documents as batches: every batch a pure function of data, seed and epoch.

A *row* is a place where the served head would start a chain: position i such that tokens i + 1 and i + 2 are both
the answer's. Token i + 1 is what the target just sampled, token i + 2 what the head predicts. Rows are the only
positions that cost more than a key and a value, so batches are made of documents with like numbers of rows.

Shapes: B documents, L tokens, R rows, A aux layers, H hidden size.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aerie.trainer.draft.shards import PATTERN, Document, read_shard
from aerie.trainer.draft.shards import DataError as DataError

BUCKET = 8
"""Documents whose numbers of rows differ by less than this may share a batch in any order."""


@dataclass(frozen=True)
class Batch:
    """Padded documents, float32."""

    next_ids_BL: Tensor
    """Token i + 1 at position i."""
    aux_BLA: Tensor
    """[B, L, A * H]."""
    rows_BR: Tensor
    """Position i of every row; 0 where padded."""
    row_mask_BR: Tensor
    final_BRH: Tensor
    """The target's last residual stream at token i + 1, from which the teacher's prediction of token i + 2 comes."""
    choices_BR: Tensor
    """The target's most likely token there."""
    drawn_BR: Tensor
    """The answer's own token there: the same when the answer is greedy."""

    @property
    def tokens(self) -> int:
        """Tokens in the batch, padding included."""
        return self.next_ids_BL.numel()


class Source(Protocol):
    """Documents to train on, wherever their states are."""

    def __len__(self) -> int:
        """Documents with at least one row."""
        ...

    @property
    def row_counts(self) -> list[int]:
        """Rows of every document."""
        ...

    def token_counts(self, vocab_size: int, *, supervised_only: bool) -> Tensor:
        """How often each token occurs, [vocab_size]."""
        ...

    def plan(self, batch_rows: int, seed: int, epoch: int) -> list[list[int]]:
        """Which documents form each batch of an epoch, in training order."""
        ...

    def batch(self, indices: list[int]) -> Batch:
        """The documents of one of the plan's batches; cheap when batches are asked for in the plan's order."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def rows_of(document: Document) -> Tensor:
    """The positions of a document's rows, ascending."""
    return supervised_rows(document.supervised)


def supervised_rows(supervised_L: Tensor) -> Tensor:
    """The positions of a document's rows, which need no states to be known."""
    return torch.nonzero(supervised_L[1:-1] & supervised_L[2:]).flatten()


def occurrences(token_ids: list[Tensor], vocab_size: int) -> Tensor:
    """How often each token occurs, [vocab_size]."""
    return torch.bincount(torch.cat(token_ids).long(), minlength=vocab_size)


class Captured:
    """The documents of a capture folder that have at least one row; memory-mapped until used."""

    def __init__(self, folder: Path) -> None:
        documents = [document for path in sorted(folder.glob(PATTERN)) for document in read_shard(path)]
        pairs = [(document, rows) for document in documents if len(rows := rows_of(document))]
        if not pairs:
            raise DataError(f"{folder}: no answer is long enough to train on (at least two tokens)")
        self._documents, self._rows = [document for document, _ in pairs], [rows for _, rows in pairs]

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def row_counts(self) -> list[int]:
        """Rows of every document."""
        return [len(rows) for rows in self._rows]

    def token_counts(self, vocab_size: int, *, supervised_only: bool) -> Tensor:
        """How often each token occurs, [vocab_size]."""
        return occurrences(
            [one.token_ids[one.supervised] if supervised_only else one.token_ids for one in self._documents], vocab_size
        )

    def plan(self, batch_rows: int, seed: int, epoch: int) -> list[list[int]]:
        """Which documents form each batch of an epoch, in training order."""
        return plan(self.row_counts, batch_rows, seed, epoch)

    def batch(self, indices: list[int]) -> Batch:
        """The documents of these indices, padded on the right."""
        return padded([self._documents[index] for index in indices])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing to end; as `Source` asks."""


def padded(documents: list[Document]) -> Batch:
    """Documents, each with at least one row, as a batch padded on the right."""
    rows = [rows_of(one) for one in documents]
    # Nothing after the last row is seen by any row.
    ends = [int(one[-1]) + 1 for one in rows]
    pairs = list(zip(documents, rows, strict=True))
    next_ids = [one.token_ids[1 : end + 1].long() for one, end in zip(documents, ends, strict=True)]
    aux = [one.hidden_states[:end, :-1].flatten(1).float() for one, end in zip(documents, ends, strict=True)]
    return Batch(
        next_ids_BL=pad_sequence(next_ids, batch_first=True),
        aux_BLA=pad_sequence(aux, batch_first=True),
        rows_BR=pad_sequence(rows, batch_first=True),
        row_mask_BR=pad_sequence([torch.ones_like(one, dtype=torch.bool) for one in rows], batch_first=True),
        final_BRH=pad_sequence([one.hidden_states[at + 1, -1].float() for one, at in pairs], batch_first=True),
        choices_BR=pad_sequence([one.choices[at + 1].long() for one, at in pairs], batch_first=True),
        drawn_BR=pad_sequence([one.token_ids[at + 2].long() for one, at in pairs], batch_first=True),
    )


def plan(row_counts: list[int], batch_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Which documents form each batch of an epoch, in training order: shuffled, yet of like numbers of rows."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(row_counts), generator=generator).tolist()
    # sorted() is stable, so documents of one bucket stay shuffled.
    ordered = sorted(shuffled, key=lambda index: row_counts[index] // BUCKET)
    batches, current, widest = list[list[int]](), list[int](), 0
    for index in ordered:
        widest = max(widest, row_counts[index])
        if current and widest * (len(current) + 1) > batch_rows:
            batches.append(current)
            current, widest = [], row_counts[index]
        current.append(index)
    batches.append(current)
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[place] for place in order]
