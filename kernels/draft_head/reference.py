# SPDX-License-Identifier: Apache-2.0
"""What the draft's greedy choice is, in float64.

Shape suffixes: T tokens, H hidden size, V draft vocabulary.
"""

import torch


def logits(hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """Over the draft vocabulary, float64 [T, V]."""
    return hidden_TH.double() @ weight_VH.double().T


def draft_tokens(hidden_TH: torch.Tensor, weight_VH: torch.Tensor, d2t_V: torch.Tensor | None) -> torch.Tensor:
    """The target's id of the largest logit, int64 [T]; of equal ones the lowest draft id's."""
    top_T = logits(hidden_TH, weight_VH).argmax(-1)
    return top_T if d2t_V is None else top_T + d2t_V[top_T]
