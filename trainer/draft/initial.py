# SPDX-License-Identifier: Apache-2.0
"""A head before its first update.

Every tensor is drawn from a generator of its own, seeded by the training's seed and the tensor's name: heads of
different gates share every tensor they have in common. The gate starts at zero, where sigmoid is 1/2, and the output
projection doubled, so that a gated head computes at the start exactly what a plain one does.
"""

import hashlib

import torch
from torch import Tensor, nn

from aerie.draft_models.contract import DraftConfig
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.target import Teacher
from aerie.trainer.draft.vocab import maps

GATE = "midlayer.self_attn.g_proj.weight"
OUTPUT = "midlayer.self_attn.o_proj.weight"


def initial_head(config: DraftConfig, teacher: Teacher, ids_V: Tensor, seed: int) -> Eagle3Head:
    """A new head that drafts the target tokens `ids_V`, with the target's embeddings, last norm and output rows."""
    head = Eagle3Head(config, teacher.embed_WH)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.dim() == 2:
                _draw(name, parameter, seed)
        head.norm.weight.copy_(teacher.norm_H)
        head.lm_head.weight.copy_(teacher.head_WH[ids_V])
        if config.gate != "none":
            parameters = dict(head.named_parameters())
            parameters[GATE].zero_()
            parameters[OUTPUT].mul_(2)
    if config.maps_vocabulary:
        for name, buffer in maps(ids_V, config.vocab_size).items():
            getattr(head, name).copy_(buffer)
    return head


def _draw(name: str, parameter: nn.Parameter, seed: int) -> None:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
