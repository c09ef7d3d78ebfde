# SPDX-License-Identifier: Apache-2.0
"""The draft vocabulary: the tokens the target answers with most often."""

import torch
from torch import Tensor


def choose(answer_counts_W: Tensor, all_counts_W: Tensor, size: int) -> Tensor:
    """Target ids of the draft vocabulary, ascending, [size].

    Most frequent in answers first; ties and the rest by their frequency anywhere, then by the lower id.
    """
    ids = torch.arange(len(answer_counts_W))
    for counts in (all_counts_W, answer_counts_W):
        ids = ids[torch.sort(counts[ids], descending=True, stable=True).indices]
    return ids[:size].sort().values


def maps(ids_V: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """The checkpoint's `d2t` (target id minus draft id) and `t2d` (whether a target id can be drafted)."""
    drafted = torch.zeros(vocab_size, dtype=torch.bool)
    drafted[ids_V] = True
    return {"d2t": ids_V - torch.arange(len(ids_V)), "t2d": drafted}
