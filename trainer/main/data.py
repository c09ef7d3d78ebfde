# SPDX-License-Identifier: Apache-2.0
"""Dialogues as token ids with labels: the assistant learns what it would say, given what a client would send.

Past reasoning is never sent back by a client, so a document ends at a turn that reasons, and an earlier turn that
reasoned is shown without its reasoning and without supervision.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aerie.trainer.clinic.dialogue import SYSTEM_PROMPT, Dialogue
from aerie.trainer.main.tokenizer import THINK_END, THINK_START, TURN_END, TURN_START

IGNORED = -100
# Lengths are rounded up to this: every new shape makes the CPU's matrix library compile its kernels anew.
LENGTH_MULTIPLE = 64
CUT_AT_DIFFERENTIAL = 0.35


def cut(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """End a consultation at its differential, or leave it whole, so that both reasoning turns are learnt."""
    ends = [place for place, turn in enumerate(dialogue.turns) if turn.reasoning]
    last = ends[0] if rng.random() < CUT_AT_DIFFERENTIAL else ends[-1]
    return Dialogue(dialogue.turns[: last + 1], dialogue.disease)


def segments(dialogue: Dialogue) -> list[tuple[str, bool]]:
    """The document's text in pieces, each with whether it is supervised. Joined, it is the chat template's text."""
    pieces = [(f"{TURN_START}system\n{SYSTEM_PROMPT}{TURN_END}\n", False)]
    for place, turn in enumerate(dialogue.turns):
        if turn.role == "user":
            pieces.append((f"{TURN_START}user\n{turn.content}{TURN_END}\n", False))
            continue
        last = place == len(dialogue.turns) - 1
        reasoning = turn.reasoning if last else ""
        pieces += [
            (f"{TURN_START}assistant\n", False),
            (f"{THINK_START}\n{reasoning}\n{THINK_END}\n\n{turn.content}{TURN_END}", last or not turn.reasoning),
            ("\n", False),
        ]
    return pieces


def encode(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one document. Pieces meet at special tokens, so ids equal those of the whole text."""
    input_ids, labels = list[int](), list[int]()
    for text, supervised in segments(dialogue):
        ids = tokenizer.encode(text, add_special_tokens=False)
        input_ids += ids
        labels += ids if supervised else [IGNORED] * len(ids)
    return {"input_ids": input_ids, "labels": labels}


class Documents(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Encoded documents in memory."""

    def __init__(self, dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        rng = random.Random(f"aerie-documents/{seed}")
        self.rows = [encode(cut(one, rng), tokenizer) for one in dialogues]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]

    @property
    def tokens(self) -> int:
        """How many tokens all documents have."""
        return sum(len(row["input_ids"]) for row in self.rows)


@dataclass(frozen=True)
class RightPadding:
    """Pads on the right, without an attention mask unless it is asked for.

    Causal attention never looks to the right and padded labels are ignored, so the mask would change nothing but cost
    the fast attention path. Only a router's balance needs it: padding goes to experts too, and is not to count.
    """

    pad_token_id: int
    mask: bool = False

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """`input_ids`, `labels`, maybe `attention_mask`: int64 [rows, longest rounded up to a multiple of 64]."""
        longest = max(len(row["input_ids"]) for row in rows)
        longest += -longest % LENGTH_MULTIPLE

        def padded(name: str, fill: int) -> Tensor:
            return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

        batch = {"input_ids": padded("input_ids", self.pad_token_id), "labels": padded("labels", IGNORED)}
        if self.mask:
            lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
            batch["attention_mask"] = (torch.arange(longest) < lengths).long()
        return batch
