# SPDX-License-Identifier: Apache-2.0
"""Rows, batches and the draft vocabulary."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aerie.trainer.draft import vocab
from aerie.trainer.draft.data import Captured, DataError, plan

HIDDEN, LAYERS = 4, 3


def _write(folder: Path, answers: list[list[bool]]) -> None:
    """One shard with one document per mask of supervised tokens; token t of a document is t."""
    lengths = [len(one) for one in answers]
    total = sum(lengths)
    tensors = {
        "hidden_states": torch.arange(total * LAYERS * HIDDEN).view(total, LAYERS, HIDDEN).to(torch.bfloat16),
        "token_ids": torch.cat([torch.arange(length) for length in lengths]).to(torch.int32),
        "supervised": torch.tensor([flag for one in answers for flag in one]),
        "choices": torch.arange(total, dtype=torch.int32),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
    }
    save_file(tensors, folder / "hs_00000.safetensors")


def test_a_row_starts_where_the_engine_would_draft(tmp_path: Path) -> None:
    # Tokens 2..4 are the answer: the target samples 2, then the head at position 1 sees token 2 and predicts 3.
    _write(tmp_path, [[False, False, True, True, True], [False, True, False, True, True, False]])
    data = Captured(tmp_path)
    assert data.row_counts == [2, 1]
    batch = data.batch([0, 1])
    assert batch.rows_BR.tolist() == [[1, 2], [2, 0]]
    assert batch.row_mask_BR.tolist() == [[True, True], [True, False]]
    assert batch.next_ids_BL.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert batch.choices_BR.tolist() == [[2, 3], [5 + 3, 0]]
    assert batch.aux_BLA.shape == (2, 3, (LAYERS - 1) * HIDDEN)
    states = torch.arange(11 * LAYERS * HIDDEN).view(11, LAYERS, HIDDEN).to(torch.bfloat16).float()
    assert batch.final_BRH[0].tolist() == states[2:4, -1].tolist()
    assert batch.aux_BLA[1, 2].tolist() == states[5 + 2, :-1].flatten().tolist()


def test_an_epoch_is_a_function_of_its_seed() -> None:
    counts = [3, 90, 17, 40, 41, 39, 5, 60, 2, 44]
    first, again, other_epoch, other_seed = (plan(counts, 100, *key) for key in ((1, 0), (1, 0), (1, 1), (2, 0)))
    assert first == again
    assert first != other_epoch
    assert first != other_seed
    for batches in (first, other_epoch, other_seed):
        assert sorted(index for batch in batches for index in batch) == list(range(len(counts)))
        assert all(len(batch) * max(counts[index] for index in batch) <= 100 for batch in batches)


def test_one_answer_longer_than_the_budget_is_a_batch() -> None:
    assert sorted(map(sorted, plan([500, 3], 100, 0, 0))) == [[0], [1]]


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    _write(tmp_path, [[False, True, True]])
    path = tmp_path / "hs_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="hs_00000"):
        Captured(tmp_path)


def test_nothing_to_supervise_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, [[False, False, True]])
    with pytest.raises(DataError, match="no answer"):
        Captured(tmp_path)


def test_the_draft_vocabulary_is_the_most_frequent_answers() -> None:
    answers, anywhere = torch.tensor([0, 5, 0, 2, 5, 0, 0]), torch.tensor([0, 5, 9, 2, 5, 1, 1])
    assert vocab.choose(answers, anywhere, 3).tolist() == [1, 3, 4]
    # Unused in answers: frequent elsewhere first, then the lower id.
    assert vocab.choose(answers, anywhere, 5).tolist() == [1, 2, 3, 4, 5]
    maps = vocab.maps(torch.tensor([1, 3, 4]), 7)
    assert maps["d2t"].tolist() == [1, 2, 2]
    assert maps["t2d"].tolist() == [False, True, False, True, True, False, False]
