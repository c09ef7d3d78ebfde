# SPDX-License-Identifier: Apache-2.0
"""One decoder layer in 4 bits: what calibration text says of its inputs, a method, and the error that is left.

Shape suffixes: D documents, L tokens, H hidden size, K inputs of a linear layer.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from aerie.quant.formats.base import Format
from aerie.quant.groups import groups, seen
from aerie.quant.memory import give_back
from aerie.quant.methods import autoround, awq
from aerie.quant.methods.rtn import round_to_nearest
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import account
from aerie.quant.skeleton import Experts, Skeleton
from aerie.quant.stream import check_finite
from aerie.quant.weight import Int4Weight, Scheme

CALIBRATION = "calibration"
"""Name of the texts that methods look at; others are only carried along."""
Advance = Callable[[float], None]
"""Told the loss of each iteration of a method that has any."""


@dataclass
class Texts:
    """Calibration text inside the model: what two models, before and after quantising, make of it so far."""

    plain_DLH: Tensor
    """States of the unquantised model, float32."""
    quantised_DLH: Tensor
    """States of the model whose earlier layers are quantised."""
    counts_DL: Tensor
    """Which tokens are of a document; the rest pads."""

    @classmethod
    def of(cls, states_DLH: Tensor, counts_DL: Tensor) -> "Texts":
        """At the model's door, where both models see the same."""
        return cls(states_DLH, states_DLH, counts_DL)

    def __len__(self) -> int:
        return len(self.plain_DLH)


@dataclass
class LayerResult:
    """A layer in 4 bits."""

    stored: dict[str, dict[str, Tensor]]
    """What a checkpoint holds of each linear layer in 4 bits, by its name within the layer."""
    changed: dict[str, Tensor]
    """Other tensors that the method changed, by name within the layer: norms, routers, biases."""
    accounts: dict[str, dict[str, Any]]
    """What is reported of each linear layer."""
    output_errors: dict[str, float]
    """By text: norm of what the layer's outputs differ by from the unquantised model's, over the norm of those."""
    tokens_by_expert: list[int] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    """Linear layers of experts that calibration reached too seldom: rounded without regard to inputs."""


class LayerQuantiser:
    """Quantises layers, one after another."""

    def __init__(self, skeleton: Skeleton, recipe: QuantRecipe, scheme: Scheme, stored_as: Format) -> None:
        self._skeleton, self._recipe, self._scheme, self._format = skeleton, recipe, scheme, stored_as

    def quantise(
        self, index: int, selected: Collection[str], texts: Mapping[str, Texts], advance: Advance = lambda loss: None
    ) -> LayerResult:
        """Quantise the linear layers `selected`, by name within layer `index`, and move all texts past the layer.

        Raises:
            QuantError: the layer holds what is not finite, or cannot be treated by the recipe's method.
        """
        layer = self._skeleton.layer(index)
        for name, tensor in layer.state_dict().items():
            check_finite(self._skeleton.prefix(index) + name, tensor)
        wanted = {name: self._skeleton.run(layer, text.plain_DLH) for name, text in texts.items()}
        calibration = texts.get(CALIBRATION)
        counts, squares = ([], {}) if calibration is None else self._look(layer, calibration)
        starved = self._starved(counts, selected)
        fed = set(selected) - starved
        chosen = self._rounded(layer, fed, squares)
        if calibration is not None and self._recipe.method == "autoround":
            chosen = self._tuned(index, layer, chosen, calibration, wanted[CALIBRATION], advance)
        modules: dict[str, Any] = dict(layer.named_modules())
        accounts, stored = {}, {}
        for name, weight in chain(chosen, self._rounded(layer, starved, {})):
            accounts[name] = account(modules[name].weight, weight)
            weight.dequantise_into(modules[name].weight)
            # At once, so that no integers but one linear layer's are in memory unpacked.
            stored[name] = self._format.tensors(self._skeleton.prefix(index) + name, weight.cpu())
            give_back()
        changed = self._changed(index, layer, selected)
        for tensor in changed.values():
            # As they will be stored; what follows then sees the checkpoint's own arithmetic.
            tensor.copy_(tensor.bfloat16())
        for name, text in texts.items():
            text.plain_DLH, text.quantised_DLH = wanted[name], self._skeleton.run(layer, text.quantised_DLH)
        errors = {name: relative_error(text) for name, text in texts.items()}
        # Copies: the layer's tensors are parts of one block, which any of them would hold.
        moved = {name: tensor.cpu().clone() for name, tensor in changed.items()}
        return LayerResult(stored, moved, accounts, errors, counts, sorted(starved))

    def _look(self, layer: nn.Module, calibration: Texts) -> tuple[list[int], dict[str, Tensor]]:
        """Tokens of each expert, and the mean square of each linear layer's inputs, by name."""
        read = seen(self._skeleton, layer, calibration.quantised_DLH, calibration.counts_DL)
        counts: list[int] = []
        if isinstance(layer.mlp, Experts):
            counts = layer.mlp.counts(read["mlp"].to(self._skeleton.device)).tolist()
        return counts, self._scale(layer, read)

    def _rounded(
        self, layer: nn.Module, selected: Collection[str], squares: Mapping[str, Tensor]
    ) -> Iterable[tuple[str, Int4Weight]]:
        """The selected weights rounded to nearest, each when it is asked for."""
        modules: dict[str, Any] = dict(layer.named_modules())
        for name in sorted(selected):
            yield name, round_to_nearest(modules[name].weight, self._scheme, self._recipe.clip, squares.get(name))

    def _changed(self, index: int, layer: nn.Module, selected: Collection[str]) -> dict[str, Tensor]:
        """Tensors other than the selected layers' weights that are not what the checkpoint holds, by name."""
        if self._recipe.method == "rtn":
            return {}
        rest = {name: tensor for name, tensor in layer.state_dict().items() if name not in _weights(selected)}
        return {
            name: tensor
            for name, tensor in rest.items()
            if not torch.equal(tensor, self._skeleton.load(self._skeleton.prefix(index) + name))
        }

    def _scale(self, layer: nn.Module, read: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean square of each linear layer's inputs, by name; AWQ's scales are folded on the way."""
        names = {module: name for name, module in layer.named_modules()}
        squares: dict[str, Tensor] = {}
        if self._recipe.method == "rtn":
            return squares
        walk = groups(layer, read, self._skeleton.config, self._skeleton.device)
        group = next(walk, None)
        with torch.no_grad():
            while group is not None:
                s_K = torch.ones_like(group.magnitude_K)
                if self._recipe.method == "awq":
                    s_K = awq.scale(group, self._scheme, self._recipe.clip)
                for entry, linears in enumerate(group.linears):
                    square_K = group.inputs(entry).mean_square() / s_K.square()
                    squares.update({names[linear]: square_K for linear in linears})
                try:
                    group = walk.send(s_K)
                except StopIteration:
                    group = None
        return squares

    def _starved(self, counts: list[int], selected: Collection[str]) -> set[str]:
        """Selected linear layers of experts that too few calibration tokens were routed to."""
        few = [index for index, count in enumerate(counts) if count < self._recipe.min_expert_tokens]
        return {name for name in selected if any(name.startswith(f"mlp.experts.{index}.") for index in few)}

    def _tuned(
        self,
        index: int,
        layer: nn.Module,
        start: Iterable[tuple[str, Int4Weight]],
        texts: Texts,
        wanted_DLH: Tensor,
        advance: Advance,
    ) -> Iterable[tuple[str, Int4Weight]]:
        """The weights tuned by AutoRound."""
        device, recipe = self._skeleton.device, self._recipe

        def sample(chosen_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return (
                texts.quantised_DLH[chosen_D].to(device),
                wanted_DLH[chosen_D].to(device),
                texts.counts_DL[chosen_D].to(device),
            )

        settings = autoround.Tuning(recipe.iterations, recipe.batch_documents, seed=index)
        positions = self._skeleton.positions(texts.plain_DLH.shape[1])
        return autoround.tune(layer, start, self._scheme, sample, positions, len(texts), settings, advance)


def relative_error(texts: Texts) -> float:
    """How far the two models' states are apart, over the norm of the unquantised one's."""
    plain, quantised = texts.plain_DLH[texts.counts_DL], texts.quantised_DLH[texts.counts_DL]
    return float((quantised - plain).norm() / plain.norm().clamp(min=1e-12))


def _weights(names: Collection[str]) -> set[str]:
    return {f"{name}.weight" for name in names}
