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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aerie.quant.memory import give_back
from aerie.quant.methods.learned import LearnedLinear, Workspace
from aerie.quant.weight import Int4Weight, Scheme


@dataclass(frozen=True)
class Tuning:
    """How long and on how much a layer is tuned."""

    iterations: int
    documents: int
    """Of an iteration."""
    seed: int


def tune(
    layer: nn.Module,
    start: Iterable[tuple[str, Int4Weight]],
    scheme: Scheme,
    sample: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    positions: Mapping[str, object],
    documents: int,
    settings: Tuning,
    advance: Callable[[float], None] = lambda loss: None,
) -> Iterator[tuple[str, Int4Weight]]:
    """Learn the rounding of a decoder layer's weights.

    Args:
        layer: with its unquantised weights; those in `start` are put back one by one as their results are yielded.
        start: name of a linear layer within `layer`, and where its rounding starts. Others stay as they are.
        scheme: what is stored.
        sample: inputs [D, L, H], wanted outputs [D, L, H] and which tokens count [D, L], for document numbers [D].
        positions: what the layer takes beside its inputs.
        documents: how many there are.
        settings: iterations, documents of each, seed.
        advance: told the loss of every iteration.

    Yields:
        By name, the better of what was learned and `start`, by the error over all documents.
    """
    linears: dict[str, Any] = dict(layer.named_modules())
    learned: dict[str, LearnedLinear] = {}
    workspace = Workspace()
    for name, weight in start:
        learned[name] = LearnedLinear(linears[name], weight, scheme, workspace)
        layer.set_submodule(name, learned[name])
        give_back()

    def error(chosen_D: Tensor) -> tuple[Tensor, int]:
        inputs, wanted, counts = sample(chosen_D)
        difference = (layer(inputs, **positions) - wanted)[counts]
        return difference.square().sum(), difference.numel()

    if learned:
        _learn(list(learned.values()), error, documents, settings, advance)
        give_back()
    for name, one in learned.items():
        result = one.rounding.result()
        one.rounding.restore()
        # What follows packs the result and wants memory of its own.
        workspace.clear()
        layer.set_submodule(name, linears[name])
        yield name, result


def _learn(
    learned: Sequence[LearnedLinear],
    error: Callable[[Tensor], tuple[Tensor, int]],
    documents: int,
    settings: Tuning,
    advance: Callable[[float], None],
) -> None:
    """All iterations; `error` is the sum of squares over document numbers [D], and of how many."""

    def whole_error() -> float:
        with torch.no_grad():
            return sum(float(error(chosen)[0]) for chosen in torch.arange(documents).split(settings.documents))

    generator = torch.Generator().manual_seed(settings.seed)
    before = whole_error()
    for iteration in range(settings.iterations):
        for one in learned:
            one.rate = (1 - iteration / settings.iterations) / settings.iterations
        squares, count = error(torch.randperm(documents, generator=generator)[: settings.documents])
        loss = squares / count
        loss.backward()
        advance(float(loss.detach()))
    if whole_error() >= before:
        for one in learned:
            one.rounding.forget()
