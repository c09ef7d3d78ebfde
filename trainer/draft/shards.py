# SPDX-License-Identifier: Apache-2.0
"""Captured documents on disk.

A shard `hs_NNNNN.safetensors` holds whole documents one after another:

| tensor | type and shape | what |
| --- | --- | --- |
| `hidden_states` | bf16 [T, A + 1, H] | the aux layers, ascending, then the residual stream before the last norm |
| `token_ids` | int32 [T] | prompt and answer |
| `supervised` | bool [T] | true for the answer's tokens |
| `choices` | int32 [T] | the target's most likely next token, taken before the states were rounded |
| `lengths` | int32 [documents] | tokens of each document |

Names, order and the place before the last norm are those of speculators' `hs_*.safetensors`, which keep one document a
file as `hidden_states` [T, A + 1, H] and `token_ids` [T]: split by `lengths`, a shard is a set of those.

Shapes: T tokens of a shard, A aux layers, H hidden size.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aerie.trainer.errors import TrainerError

PATTERN = "hs_*.safetensors"
_PARTS = ("hidden_states", "token_ids", "supervised", "choices")


class DataError(TrainerError, ValueError):
    """Captured data that cannot be trained on, or cannot be stored."""


@dataclass(frozen=True)
class Document:
    """One captured document, float data as stored (bf16)."""

    hidden_states: Tensor
    token_ids: Tensor
    supervised: Tensor
    choices: Tensor


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / f"hs_{number:05}.safetensors"


def write_shard(path: Path, documents: list[Document]) -> None:
    """Write whole or not at all. Raises DataError when the disk is full."""
    tensors = {name: torch.cat([getattr(one, name) for one in documents]).contiguous() for name in _PARTS}
    tensors["lengths"] = torch.tensor([len(one.token_ids) for one in documents], dtype=torch.int32)
    staging = path.with_name(f".{path.name}")
    try:
        save_file(tensors, staging)
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.replace(path)
    except (OSError, SafetensorError) as error:
        staging.unlink(missing_ok=True)
        needed = sum(tensor.nbytes for tensor in tensors.values()) / 2**30
        raise DataError(
            f"{path}: cannot be written ({error}); it needs {needed:.3f} GiB: make room in the work folder, or set "
            f"capture.disk_budget_gib to what captured states may take"
        ) from error


def read_shard(path: Path) -> list[Document]:
    """The documents, memory-mapped until used. Raises DataError for a shard that is not whole."""
    try:
        tensors = load_file(path)
        lengths = tensors["lengths"].tolist()
        parts = [tensors[name].split(lengths) for name in _PARTS]
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: not a whole shard ({error}); remove its folder to capture again") from error
    return [Document(*one) for one in zip(*parts, strict=True)]
