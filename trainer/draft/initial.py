# SPDX-License-Identifier: Apache-2.0
"""A head before its first update: drawn anew, or taken from a trained one.

Every tensor is drawn from a generator of its own, seeded by the training's seed and the tensor's name: heads of
different gates share every tensor they have in common. The gate starts at zero, where sigmoid is 1/2, and the output
projection doubled, so that a gated head computes at the start exactly what a plain one does.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from aerie.draft_models.checkpoint import read_head
from aerie.draft_models.contract import ContractError, DraftConfig
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.target import Teacher
from aerie.trainer.draft.vocab import maps
from aerie.trainer.recipe import RecipeError

GATE = "midlayer.self_attn.g_proj.weight"
OUTPUT = "midlayer.self_attn.o_proj.weight"
ROWS = "lm_head.weight"


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


def warm_start(head: Eagle3Head, start: Path, target: Path) -> None:
    """Take over the weights of a trained head of any maker.

    The output rows of tokens that it could not draft stay the target's.

    A plain head starts a gated one: its output projection is doubled against the gate's 1/2, so that both draft the
    same before the first update. Raises RecipeError when the two heads are not of one shape.
    """
    try:
        config, trained = read_head(start, target)
    except ContractError as error:
        raise RecipeError(f"head.start: {start}: {str(error).removeprefix(f'--draft {start}: ')}") from error
    _check_shape(head.config, config, start)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name != ROWS and name in trained:
                parameter.copy_(trained[name])
        if config.gate == "none" and head.config.gate != "none":
            dict(head.named_parameters())[OUTPUT].mul_(2)
        _copy_rows(head, config, trained)


def _check_shape(ours: DraftConfig, theirs: DraftConfig, start: Path) -> None:
    # The gate may be new, the draft vocabulary another; the target's identity is what an adaptation changes.
    free = {"gate", "draft_vocab_size", "target", "max_position_embeddings"}
    left, right = ours.model_dump(exclude=free), theirs.model_dump(exclude=free)
    if different := [f"{name} is {right[name]}, here {left[name]}" for name in left if left[name] != right[name]]:
        raise RecipeError(
            f"head.start: {start} has another shape ({'; '.join(different)}); start from a head of this target's "
            f"family, or give the recipe's head its shape"
        )
    if theirs.gate not in ("none", ours.gate):
        raise RecipeError(
            f"head.start: {start} has a {theirs.gate} gate, head.gate is {ours.gate}; only a plain head or one of the "
            f"same gate can be taken over"
        )


def _copy_rows(head: Eagle3Head, config: DraftConfig, trained: dict[str, Tensor]) -> None:
    """The output rows of tokens that both heads draft."""
    theirs_V = torch.arange(config.draft_vocab_size) + trained.get("d2t", torch.zeros((), dtype=torch.long))
    place_W = torch.full((config.vocab_size,), -1)
    place_W[theirs_V] = torch.arange(config.draft_vocab_size)
    place_V = place_W[head.target_ids_V]
    known_V = place_V >= 0
    head.lm_head.weight[known_V] = trained[ROWS][place_V[known_V]].to(head.lm_head.weight.dtype)


def _draw(name: str, parameter: nn.Parameter, seed: int) -> None:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
