# SPDX-License-Identifier: Apache-2.0
"""AWQ's scales divided into what makes a layer's inputs, and the proof that a layer stays what it was.

Norms are `w x` (Llama), `(1 + w) x` (Gemma) or have a bias (StableLM). Others, norms behind the layers (OLMo2) and an
input that more layers read than are scaled (Cohere's parallel blocks) would change the model: `check` refuses them.
"""

from typing import Any

import torch
from torch import nn

from aerie.quant.errors import QuantError
from aerie.quant.groups import groups, seen
from aerie.quant.memory import give_back
from aerie.quant.skeleton import Skeleton

TOKENS = 16
TOLERANCE = 1e-3
"""Of a layer's outputs, relative: float32 leaves some 1e-6, a scale in the wrong place more than 1e-1."""


def check(skeleton: Skeleton) -> None:
    """Scale random layers' inputs by random factors and compare outputs, before any text has passed a layer.

    Raises:
        QuantError: the model's layers are made in a way that scales cannot be folded into.
    """
    for index in {0, len(skeleton) - 1}:
        fault = QuantError(
            f"recipe option method: awq cannot fold its scales into {skeleton.kind(index)}, whose norms or branches "
            "are made otherwise than Llama's; set method: autoround or rtn"
        )
        try:
            error = _error(skeleton, skeleton.layer(index))  # held by nobody else: one layer at a time is in memory
        except (AttributeError, RuntimeError, TypeError) as cause:
            raise fault from cause
        give_back()
        if not error < TOLERANCE:
            raise fault


def _error(skeleton: Skeleton, layer: nn.Module) -> float:
    generator = torch.Generator().manual_seed(0)
    size: Any = skeleton.config.hidden_size
    states = torch.randn(1, TOKENS, size, generator=generator)
    before = skeleton.run(layer, states)
    read = seen(skeleton, layer, states, torch.ones(1, TOKENS, dtype=torch.bool))
    walk = groups(layer, read, skeleton.config, skeleton.device)
    group = next(walk, None)
    with torch.no_grad():
        while group is not None:
            heads, width = group.shared
            count = len(group.magnitude_K) // (heads * width)
            s_K = torch.empty(count, 1, width).uniform_(0.5, 2.0, generator=generator).expand(-1, heads, -1).flatten()
            s_K = s_K.to(skeleton.device)
            group.fold(s_K)
            for linear in (linear for linears in group.linears for linear in linears):
                linear.weight.mul_(s_K)
            try:
                group = walk.send(s_K)
            except StopIteration:
                group = None
    after = skeleton.run(layer, states)
    return float((after - before).norm() / (before - states).norm())
