# SPDX-License-Identifier: Apache-2.0
"""AutoRound (SignRound, arXiv 2309.05516): learn which way each weight of a decoder layer is rounded.

    q = clamp(round(w / (f s) + v) + z, 0, 15)                                                          (Eq. 3)

v in [-1/2, 1/2] for each weight and f for each group are learned by signed gradient descent, straight through the
rounding, so that the quantised layer, fed what the quantised layers before it make, gives what the unquantised layer
gives in the unquantised model (mean squared error). s and z start as clipped rounding's, not at the whole range.

The `auto-round` library is the reference for the method. It wants the whole model, whereas here layers pass through
memory one at a time and a killed run goes on at the last one (docs/decisions/0007-quantiser.md).

Shape suffixes: N outputs, K inputs, G groups, D documents, L tokens, H hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aerie.quant.weight import LEVELS, MIDDLE, Int4Weight, Scheme

NARROWEST, WIDEST = 0.5, 1.5
"""Bounds of f."""


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    return value + (rounded - value).detach()


class Rounding:
    """What is learned of one weight."""

    def __init__(self, weight_NK: Tensor, start: Int4Weight, scheme: Scheme) -> None:
        n, k = weight_NK.shape
        groups = start.scale_NG.shape[1]
        self._scheme = scheme
        self._weight_NGS = weight_NK.reshape(n, groups, k // groups)
        self._start = start
        self._scale_NG1 = start.scale_NG.float()[..., None]
        zero = torch.full_like(start.scale_NG, MIDDLE) if start.zero_NG is None else start.zero_NG
        self._zero_NG1 = zero.float()[..., None]
        self.v_NGS = torch.zeros_like(self._weight_NGS, requires_grad=True)
        self.f_NG1 = torch.ones_like(self._scale_NG1, requires_grad=True)

    def _levels(self) -> tuple[Tensor, Tensor]:
        """Integers less the zero point, and scales; differentiable."""
        scale_NG1 = self._scale_NG1 * self.f_NG1
        scale_NG1 = _straight_through(scale_NG1, self._scheme.stored(scale_NG1.detach()).float())
        exact_NGS = self._weight_NGS / scale_NG1 + self.v_NGS
        q_NGS = torch.clamp(_straight_through(exact_NGS, exact_NGS.round()) + self._zero_NG1, 0, LEVELS)
        return q_NGS - self._zero_NG1, scale_NG1

    def weight(self) -> Tensor:
        """The weight [N, K] that the integers stand for; differentiable in v and f."""
        centred_NGS, scale_NG1 = self._levels()
        return (centred_NGS * scale_NG1).flatten(1)

    @torch.no_grad()
    def result(self) -> Int4Weight:
        """Integers and scales as they will be stored."""
        centred_NGS, scale_NG1 = self._levels()
        q_NK = (centred_NGS + self._zero_NG1).flatten(1).to(torch.uint8)
        return Int4Weight(q_NK, self._scheme.stored(scale_NG1.squeeze(-1)), self._start.zero_NG)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of signed gradient descent."""
        for parameter, low, high in ((self.v_NGS, -0.5, 0.5), (self.f_NG1, NARROWEST, WIDEST)):
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign_(), alpha=rate).clamp_(low, high)
                parameter.grad = None


@dataclass(frozen=True)
class Tuning:
    """How long and on how much a layer is tuned."""

    iterations: int
    documents: int
    """Of an iteration."""
    seed: int


def tune(
    layer: nn.Module,
    start: Mapping[str, Int4Weight],
    scheme: Scheme,
    sample: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    positions: Mapping[str, object],
    documents: int,
    settings: Tuning,
    advance: Callable[[float], None] = lambda loss: None,
) -> dict[str, Int4Weight]:
    """Learn the rounding of a decoder layer's weights.

    Args:
        layer: with its unquantised weights; it is left as it is.
        start: by name of a linear layer within `layer`: where its rounding starts. Layers not named stay as they are.
        scheme: what is stored.
        sample: inputs [D, L, H], wanted outputs [D, L, H] and which tokens count [D, L], for document numbers [D].
        positions: what the layer takes beside its inputs.
        documents: how many there are.
        settings: iterations, documents of each, seed.
        advance: told the loss of every iteration.

    Returns:
        The better of what was learned and `start`, by the error over all documents.
    """
    if not start:
        return {}
    modules: dict[str, Any] = dict(layer.named_modules())
    roundings = {name: Rounding(modules[name].weight, weight, scheme) for name, weight in start.items()}
    generator = torch.Generator().manual_seed(settings.seed)

    def error(chosen_D: Tensor) -> tuple[Tensor, int]:
        inputs, wanted, counts = sample(chosen_D)
        weights = {f"{name}.weight": rounding.weight() for name, rounding in roundings.items()}
        outputs = functional_call(layer, weights, (inputs,), dict(positions))
        difference = (outputs - wanted)[counts]
        return difference.square().sum(), difference.numel()

    def whole_error() -> float:
        with torch.no_grad():
            return sum(float(error(chosen)[0]) for chosen in torch.arange(documents).split(settings.documents))

    before = whole_error()
    for iteration in range(settings.iterations):
        squares, count = error(torch.randperm(documents, generator=generator)[: settings.documents])
        loss = squares / count
        loss.backward()
        rate = (1 - iteration / settings.iterations) / settings.iterations
        for rounding in roundings.values():
            rounding.step(rate)
        advance(float(loss.detach()))
    if whole_error() >= before:
        return dict(start)
    return {name: rounding.result() for name, rounding in roundings.items()}
