# SPDX-License-Identifier: Apache-2.0
"""Captured documents as batches: every batch a pure function of data, seed and epoch.

A *row* is a place where the served head would start a chain: position i such that tokens i + 1 and i + 2 are both
the answer's. Token i + 1 is what the target just sampled, token i + 2 what the head predicts. Rows are the only
positions that cost more than a key and a value, so batches are made of documents with like numbers of rows.

Shapes: B documents, L tokens, R rows, A aux layers, H hidden size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aerie.trainer.draft.capture import Document

BUCKET = 8
"""Documents whose numbers of rows differ by less than this may share a batch in any order."""


class DataError(ValueError):
    """Captured data that cannot be trained on."""


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


def rows_of(document: Document) -> Tensor:
    """The positions of a document's rows, ascending."""
    supervised = document.supervised
    return torch.nonzero(supervised[1:-1] & supervised[2:]).flatten()


class Captured:
    """The documents of a capture folder that have at least one row; memory-mapped until used."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("hs_*.safetensors"))
        self._documents = [document for path in paths for document in _read_shard(path)]
        self._rows = [rows_of(document) for document in self._documents]
        kept = [index for index, rows in enumerate(self._rows) if len(rows)]
        if not kept:
            raise DataError(f"{folder}: no answer is long enough to train on (at least two tokens)")
        self._documents = [self._documents[index] for index in kept]
        self._rows = [self._rows[index] for index in kept]

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def row_counts(self) -> list[int]:
        """Rows of every document."""
        return [len(rows) for rows in self._rows]

    def token_counts(self, vocab_size: int, *, supervised_only: bool) -> Tensor:
        """How often each token occurs, [vocab_size]."""
        parts = [one.token_ids[one.supervised] if supervised_only else one.token_ids for one in self._documents]
        return torch.bincount(torch.cat(parts).long(), minlength=vocab_size)

    def batch(self, indices: list[int]) -> Batch:
        """The documents of these indices, padded on the right."""
        documents, rows = [self._documents[i] for i in indices], [self._rows[i] for i in indices]
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


def _read_shard(path: Path) -> list[Document]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole shard ({error}); remove its folder to capture again") from error
    lengths = tensors["lengths"].tolist()
    names = ("hidden_states", "token_ids", "supervised", "choices")
    parts = [tensors[name].split(lengths) for name in names]
    return [Document(*one) for one in zip(*parts, strict=True)]
