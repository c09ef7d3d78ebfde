# SPDX-License-Identifier: Apache-2.0
"""What quantising cost in quality, on held-out text: both models' predictions of every answer token, side by side.

Shape suffixes: D documents, L tokens, H hidden size, V vocabulary, P predictions, R rows of V.
"""

import math
from collections.abc import Iterator

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from aerie.quant.skeleton import Skeleton
from aerie.quant.weight import Int4Weight

CHUNK = 128
"""Predictions compared at a time: their logits over the vocabulary are in memory several times."""
ROWS = 4096
"""Of an output matrix that are in float32 at a time: as a whole it may be larger than several layers."""


class Quality(BaseModel):
    """Teacher-forced comparison of a quantised model with the one it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(description="Tokens predicted")
    perplexity_before: float = Field(description="Of the unquantised model")
    perplexity_after: float = Field(description="Of the quantised one")
    kl: float = Field(description="Mean KL divergence from the unquantised prediction to the quantised one, in nats")
    top1_agreement: float = Field(description="Share of tokens for which both predict the same one first")

    @property
    def perplexity_loss(self) -> float:
        """Relative increase."""
        return self.perplexity_after / self.perplexity_before - 1


def compare(
    skeleton: Skeleton,
    plain_DLH: Tensor,
    quantised_DLH: Tensor,
    ids_DL: Tensor,
    scored_DL: Tensor,
    head: Int4Weight | None = None,
) -> Quality:
    """Compare from the states after the last layer; `head` is the quantised output matrix, if there is one."""
    ends = skeleton.ends
    own_VH = ends.head()
    next_P = ids_DL[:, 1:][scored_DL[:, :-1]]
    plain_PH, quantised_PH = plain_DLH[scored_DL], quantised_DLH[scored_DL]
    losses = torch.zeros(2, dtype=torch.float64)
    kl = agreed = 0.0
    for first in range(0, len(next_P), CHUNK):
        part = slice(first, first + CHUNK)
        p_PV = ends.logits(plain_PH[part], _rows(own_VH)).log_softmax(-1)
        q_PV = ends.logits(quantised_PH[part], _rows(own_VH if head is None else head)).log_softmax(-1)
        wanted_P1 = next_P[part, None]
        losses -= torch.stack([p_PV.gather(1, wanted_P1).sum(), q_PV.gather(1, wanted_P1).sum()]).double()
        kl += float((p_PV.exp() * (p_PV - q_PV)).sum())
        agreed += float((p_PV.argmax(-1) == q_PV.argmax(-1)).sum())
    count = len(next_P)
    before, after = (math.exp(loss / count) for loss in losses.tolist())
    return Quality(
        tokens=count, perplexity_before=before, perplexity_after=after, kl=kl / count, top1_agreement=agreed / count
    )


def _rows(head: Tensor | Int4Weight) -> Iterator[Tensor]:
    """An output matrix in float32, some rows at a time."""
    if isinstance(head, Tensor):
        return (rows_RH.float() for rows_RH in head.split(ROWS))
    return (part.dequantise() for part in head.split(ROWS))
