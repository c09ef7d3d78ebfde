# SPDX-License-Identifier: Apache-2.0
"""LoRA (arXiv 2106.09685) for a head: W + alpha / rank * B A, only A and B trained, merged before the export.

A torch parametrization, since the head reads its weights directly (modeling.py joins the projections of a row into one
product); libraries that wrap `forward` would not be seen there. The base head must be a trained one.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.recipe import LowRank


class LowRankDelta(nn.Module):
    """W [N, K] to W + scale * B A, with A [rank, K] drawn and B [N, rank] zero, so that it starts as W."""

    def __init__(self, weight_NK: Tensor, settings: LowRank, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = weight_NK.shape
        a_RK = torch.empty(settings.rank, inputs).normal_(std=inputs**-0.5, generator=generator)
        self.a_RK, self.b_NR = nn.Parameter(a_RK), nn.Parameter(torch.zeros(outputs, settings.rank))
        self.scale = settings.alpha / settings.rank

    def forward(self, weight_NK: Tensor) -> Tensor:
        """The adapted weight."""
        return torch.addmm(weight_NK, self.b_NR, self.a_RK, alpha=self.scale)


def add(head: Eagle3Head, settings: LowRank, seed: int) -> None:
    """Freeze the head and give every projection but `lm_head` a low-rank delta; the norms stay as they are."""
    head.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(head.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            delta = LowRankDelta(module.weight, settings, generator)
            parametrize.register_parametrization(module, "weight", delta)


def adapted(head: Eagle3Head) -> bool:
    """Whether the head has deltas."""
    return any(parametrize.is_parametrized(module) for module in head.modules())


def remove(head: Eagle3Head) -> None:
    """Add the deltas into the weights and forget them."""
    for module in list(head.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def merged(head: Eagle3Head) -> Eagle3Head:
    """A copy of the head with its deltas added into the weights; the head itself when it has none."""
    if not adapted(head):
        return head
    weights = {name: tensor for name, tensor in head.state_dict().items() if "parametrizations." not in name}
    for name, module in head.named_modules():
        if parametrize.is_parametrized(module):
            weights[f"{name}.weight"] = module.weight.detach()
    # Not a deep copy: it would share the class that a parametrization makes, and removing it there removes it here.
    whole = Eagle3Head(head.config, head.embed_WH)
    whole.load_state_dict(weights)
    return whole.to(head.embed_WH.device)
