# SPDX-License-Identifier: Apache-2.0
"""Small trainings, each a pure function of its case, on which two trainers must agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from aerie.draft_models.contract import DraftConfig
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.shards import Document
from aerie.trainer.draft.target import Teacher
from aerie.trainer.draft.vocab import maps

LENGTH, HIDDEN, VOCABULARY, DRAFTED, AUX = 41, 32, 60, 23, (1, 3, 4)
DECAY = 0.8


@dataclass(frozen=True)
class Case:
    """What is varied."""

    steps: int
    norms: bool
    """fc_norm and norm_output."""
    qk_norm: bool
    draft_vocab_size: int

    @property
    def name(self) -> str:
        """`ttt7-norms-qwen3-mapped` and the like."""
        marks = ("norms" if self.norms else "plain", "qwen3" if self.qk_norm else "llama")
        return "-".join((f"ttt{self.steps}", *marks, "full" if self.draft_vocab_size == VOCABULARY else "mapped"))


CASES = tuple(Case(*values) for values in product((1, 3, 7), (False, True), (False, True), (VOCABULARY, DRAFTED)))


@dataclass(frozen=True)
class Problem:
    """A plain head, the target's ends, and one document whose tokens are all supervised."""

    head: Eagle3Head
    teacher: Teacher
    document: Document


def problem_of(case: Case, seed: int = 0) -> Problem:
    """The problem of a case; equal cases give equal numbers on every machine."""
    draw = torch.Generator().manual_seed(seed)
    config = DraftConfig(
        hidden_size=HIDDEN,
        target_hidden_size=HIDDEN,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCABULARY,
        draft_vocab_size=case.draft_vocab_size,
        aux_hidden_state_layer_ids=AUX,
        gate="none",
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_position_embeddings=2 * LENGTH,
        fc_norm=case.norms,
        norm_output=case.norms,
        qk_norm=case.qk_norm,
    )
    embed_WH, head_WH = (torch.randn(VOCABULARY, HIDDEN, generator=draw) for _ in range(2))
    teacher = Teacher(embed_WH, head_WH, torch.rand(HIDDEN, generator=draw) + 0.5, config.rms_norm_eps)
    document = _document(teacher, draw)
    return Problem(_head(config, teacher, draw), teacher, document)


def _document(teacher: Teacher, draw: torch.Generator) -> Document:
    states_LAH = torch.randn(LENGTH, len(AUX) + 1, HIDDEN, generator=draw).bfloat16()
    return Document(
        hidden_states=states_LAH,
        token_ids=torch.randint(0, VOCABULARY, (LENGTH,), generator=draw, dtype=torch.int32),
        supervised=torch.ones(LENGTH, dtype=torch.bool),
        choices=teacher.logits(states_LAH[:, -1].float()).argmax(-1).int(),
    )


def _head(config: DraftConfig, teacher: Teacher, draw: torch.Generator) -> Eagle3Head:
    head = Eagle3Head(config, teacher.embed_WH)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
            if parameter.dim() == 1:
                parameter.add_(1)
    if config.maps_vocabulary:
        ids_V = torch.arange(0, VOCABULARY, 2)[:DRAFTED]
        for name, buffer in maps(ids_V, VOCABULARY).items():
            getattr(head, name).copy_(buffer)
    return head


def countable(head: Eagle3Head, document: Document) -> Tensor:
    """Whether row i of a wholly supervised document counts: whether its choice can be drafted, [L - 2]."""
    choices_R = document.choices[1:-1].long()
    return head.t2d[choices_R] if head.config.maps_vocabulary else torch.ones_like(choices_R, dtype=torch.bool)


def sampled(gradients: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Of each gradient: its norm, its first, middle and last entry."""
    flat = {name: gradient.detach().flatten().double() for name, gradient in sorted(gradients.items())}
    return {name: [float(one.norm()), *(float(one[at]) for at in (0, len(one) // 2, -1))] for name, one in flat.items()}
