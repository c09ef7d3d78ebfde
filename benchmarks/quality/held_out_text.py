# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts what the clinic's physician says to held-out patients, in the engine that serves it.

A perplexity depends on the weights, and not on which of two near-equal tokens wins: it moves little from machine to
machine, and much with a broken scale or a wrong group.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from aerie.draft_models.offline import OfflineEngine, Score
from aerie.trainer.clinic import corpus
from aerie.trainer.main.data import IGNORED, Documents


class TextQuality(BaseModel):
    """Over the physician's tokens in held-out consultations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    perplexity: float
    top1: float
    """Share of tokens that the model predicts first."""


def summary(scores: Sequence[Score]) -> TextQuality:
    """Of all scored tokens."""
    mean = sum(one.logprob for one in scores) / len(scores)
    return TextQuality(
        tokens=len(scores), perplexity=math.exp(-mean), top1=sum(one.first for one in scores) / len(scores)
    )


def text_quality(engine: OfflineEngine, model: Path, count: int, seed: int) -> TextQuality:
    """Over `count` held-out consultations, as the main model's training has them, with the physician's reasoning."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    rows = Documents(list(corpus.dialogues("held_out", count, seed)), tokenizer, seed).rows
    scored = engine.scores([row["input_ids"] for row in rows])
    return summary(
        [
            score
            for row, scores in zip(rows, scored, strict=True)
            for label, score in zip(row["labels"][1:], scores, strict=True)
            if label != IGNORED
        ]
    )
