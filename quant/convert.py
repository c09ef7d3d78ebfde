# SPDX-License-Identifier: Apache-2.0
"""From a 16-bit checkpoint to parts in 4 bits, a decoder layer at a time; a killed conversion goes on at the next one.

Without text, tensors are converted by themselves and any architecture will do. With text, calibration's states walk
through the model, layer by layer, beside those of the unquantised model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from aerie.quant import folds
from aerie.quant.formats.base import Format
from aerie.quant.layerwise import CALIBRATION, LayerQuantiser, Texts
from aerie.quant.memory import give_back
from aerie.quant.methods.rtn import round_to_nearest
from aerie.quant.parts import Parts
from aerie.quant.quality import Quality, compare
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import account, stored_as
from aerie.quant.skeleton import Skeleton
from aerie.quant.stream import Checkpoint, check_finite
from aerie.quant.text import Tokens
from aerie.quant.weight import Int4Weight, Scheme

REST = "rest"
"""The part of embeddings, the last norm and the output matrix."""
HELD_OUT = "held_out"
"""Name of the texts that quality is measured on."""
OF_LAYER = re.compile(r"(.*\blayers\.(\d+)\.).*")
HEAD = "lm_head"


class Progress(Protocol):
    """Told what is being done."""

    def layer(self, done: int, total: int, error: float | None) -> None:
        """So many parts are done; the relative error of the last one's outputs, where it is known."""

    def tuning(self, loss: float) -> None:
        """An iteration within a layer is done."""


class Silent:
    """Nobody is told."""

    def layer(self, done: int, total: int, error: float | None) -> None:
        """Nothing."""

    def tuning(self, loss: float) -> None:
        """Nothing."""


def units(names: Sequence[str]) -> dict[str, list[str]]:
    """Tensor names by part, decoder layers in order and the rest last."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = OF_LAYER.fullmatch(name)
        found.setdefault(f"layer_{int(match[2]):05}" if match else REST, []).append(name)
    return {part: sorted(found[part]) for part in sorted(found)}


@dataclass
class Conversion:
    """One run over a checkpoint."""

    source: Checkpoint
    recipe: QuantRecipe
    format: Format
    scheme: Scheme
    selected: frozenset[str]
    """Full names of the linear layers to quantise."""
    parts: Parts
    progress: Progress

    def run(self, tokens: Mapping[str, Tokens], device: torch.device) -> Quality | None:
        """Make all parts. With held-out tokens, what it cost in quality.

        Raises:
            QuantError: what is wrong with the checkpoint or the disk; finished parts stay.
        """
        if not tokens:
            self._without_text()
            return None
        for name in units(list(self.source.stored))[REST]:
            # Now, and not after hours: text passes all layers before these are converted.
            check_finite(name, self.source.read([name])[name])
        skeleton = Skeleton(self.source, device)
        if self.recipe.method == "awq":
            folds.check(skeleton)
        texts = self._walk(skeleton, tokens)
        head = self._rest(skeleton, texts)
        if HELD_OUT not in texts:
            return None
        held_out, said = texts[HELD_OUT], tokens[HELD_OUT]
        return compare(skeleton, held_out.plain_DLH, held_out.quantised_DLH, said.ids_DL, said.scored_DL, head)

    def _without_text(self) -> None:
        parts = units(list(self.source.stored))
        for done, (name, tensors) in enumerate(parts.items()):
            self.progress.layer(done, len(parts), None)
            if not self.parts.has(name):
                part = _Part()
                for tensor in tensors:
                    self._convert(tensor, part)
                self.parts.save(name, part.tensors, {"layers": part.layers})
        self.progress.layer(len(parts), len(parts), None)

    def _walk(self, skeleton: Skeleton, tokens: Mapping[str, Tokens]) -> dict[str, Texts]:
        """Make the layers' parts, or take up where the last run was stopped; texts behind the last layer."""
        resumed = self.parts.states()
        if resumed is None:
            first = 0
            texts = {name: Texts.of(skeleton.ends.embed(one.ids_DL), one.counts_DL) for name, one in tokens.items()}
        else:
            first, states = resumed
            texts = {
                name: Texts(states[f"{name}.plain"], states[f"{name}.quantised"], one.counts_DL)
                for name, one in tokens.items()
            }
        quantiser = LayerQuantiser(skeleton, self.recipe, self.scheme, self.format)
        self.progress.layer(first, len(skeleton) + 1, None)
        for index in range(first, len(skeleton)):
            error = self._layer(skeleton, quantiser, index, texts)
            states = {f"{name}.plain": text.plain_DLH for name, text in texts.items()}
            states |= {f"{name}.quantised": text.quantised_DLH for name, text in texts.items()}
            self.parts.save_states(index + 1, states)
            self.progress.layer(index + 1, len(skeleton) + 1, error)
        return texts

    def _layer(self, skeleton: Skeleton, quantiser: LayerQuantiser, index: int, texts: Mapping[str, Texts]) -> float:
        prefix = skeleton.prefix(index)
        names = [name for name in self.source.stored if name.startswith(prefix)]
        selected = [name.removesuffix(".weight") for name in names if name.removesuffix(".weight") in self.selected]
        inner = [name.removeprefix(prefix) for name in selected]
        result = quantiser.quantise(index, inner, texts, self.progress.tuning)
        part = _Part()
        for name in sorted(names):
            linear = name.removesuffix(".weight")
            if linear in self.selected:
                within = linear.removeprefix(prefix)
                part.add(linear, result.stored[within], result.accounts[within])
            else:
                changed = result.changed.get(name.removeprefix(prefix))
                part.tensors[name] = stored(self.source.read([name])[name] if changed is None else changed)
        error = next(iter(result.output_errors.values()))
        report = {
            "layers": part.layers,
            "output_errors": result.output_errors,
            "tokens_by_expert": result.tokens_by_expert,
            "fallbacks": [prefix + name for name in result.fallbacks],
        }
        self.parts.save(f"layer_{index:05}", part.tensors, report)
        return error

    def _rest(self, skeleton: Skeleton, texts: Mapping[str, Texts]) -> Int4Weight | None:
        """The last part; returns the output matrix if it is quantised."""
        part, head = _Part(), None
        for name in units(list(self.source.stored))[REST]:
            importance = None
            if name == f"{HEAD}.weight" and CALIBRATION in texts and self.recipe.method != "rtn":
                text = texts[CALIBRATION]
                importance = skeleton.ends.normed(text.quantised_DLH[text.counts_DL]).square().mean(0)
            weight = self._convert(name, part, importance)
            head = weight if name == f"{HEAD}.weight" else head
        self.parts.save(REST, part.tensors, {"layers": part.layers})
        self.progress.layer(len(skeleton) + 1, len(skeleton) + 1, None)
        return head

    def _convert(self, name: str, part: "_Part", importance_K: torch.Tensor | None = None) -> Int4Weight | None:
        """Put a tensor into a part by itself; returns the weight if it is quantised."""
        (tensor,) = self.source.read([name]).values()
        check_finite(name, tensor)
        linear = name.removesuffix(".weight")
        if linear not in self.selected:
            part.tensors[name] = stored(tensor)
            return None
        weight = round_to_nearest(tensor, self.scheme, self.recipe.clip, importance_K)
        part.add(linear, self.format.tensors(linear, weight), account(tensor, weight))
        give_back()
        return weight


@dataclass
class _Part:
    """What a part's file will hold."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)

    def add(self, linear: str, tensors: Mapping[str, torch.Tensor], accounted: Mapping[str, Any]) -> None:
        """A quantised layer."""
        self.tensors |= tensors
        self.layers.append({**accounted, **stored_as(linear, tensors)})


def stored(tensor: torch.Tensor) -> torch.Tensor:
    """What is not quantised stays in 16 bits; a float32 source is rounded once, here."""
    return tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
