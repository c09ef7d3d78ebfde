# SPDX-License-Identifier: Apache-2.0
"""What every checkpoint format does: refuse, write, describe itself in config.json, recognise, read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from aerie.quant.declared import EXPERT as EXPERT
from aerie.quant.errors import NotQuantisedError
from aerie.quant.formats.nibbles import VALUES_PER_WORD
from aerie.quant.weight import Int4Weight, Scheme

HEAD_MULTIPLE = 64
"""vLLM pads the vocabulary to this, but only where the outputs are a tensor's rows."""


@dataclass(frozen=True)
class Selection:
    """Which linear layers of a checkpoint are quantised."""

    layers: tuple[str, ...]
    """Those that are, sorted."""
    ignore: tuple[str, ...]
    """What tells those that are not: full names, or regular expressions after `re:`."""
    kept: tuple[str, ...]
    """Those that are not, each by its name; the experts of a layer together by theirs (`….mlp.experts`)."""

    @property
    def head(self) -> bool:
        """Whether lm_head is quantised."""
        return any(is_head(layer) for layer in self.layers)


class Format(Protocol):
    """One way to store `Int4Weight` that vLLM loads."""

    name: str
    """As recipes name it."""
    scale_dtype: torch.dtype
    kinds: frozenset[str]
    """Last parts of the names of a layer's tensors; some may be missing."""

    def unsupported(self, scheme: Scheme, layer: str, outputs: int, inputs: int) -> str | None:
        """Why this layer cannot be stored or vLLM could not load it: recipe option, reason, fix; None when it can."""

    def tensors(self, layer: str, weight: Int4Weight) -> dict[str, torch.Tensor]:
        """What replaces `layer`.weight, contiguous, by full name."""

    def quantization_config(self, scheme: Scheme, selection: Selection) -> dict[str, object]:
        """The `quantization_config` of config.json, from which vLLM knows which modules are quantised, and how."""

    def describes(self, config: Mapping[str, Any]) -> Scheme | None:
        """The scheme of a checkpoint with this config.json; None when it is not one that `read` can read."""

    def read(self, tensors: Mapping[str, torch.Tensor]) -> Int4Weight:
        """A layer from its tensors, by kind; contiguous. Raises NotQuantisedError when one is missing."""


def is_head(layer: str) -> bool:
    """Whether a layer makes the logits."""
    return layer.rpartition(".")[2] == "lm_head"


def part(tensors: Mapping[str, torch.Tensor], kind: str) -> torch.Tensor:
    """The tensor of that kind. Raises NotQuantisedError."""
    if kind not in tensors:
        raise NotQuantisedError(f"a quantised layer has no {kind}, only {', '.join(sorted(tensors)) or 'nothing'}")
    return tensors[kind]


def indivisible(layer: str, outputs: int | None = None, inputs: int | None = None) -> str | None:
    """Why eight values a word do not hold the layer; None when they do. Give the sizes that are packed."""
    for count, what in ((outputs, "outputs"), (inputs, "inputs")):
        if count is not None and count % VALUES_PER_WORD:
            return f"ignore: {layer} has {count} {what}, no multiple of a word's {VALUES_PER_WORD}; {_add(layer)}"
    return None


def unpadded_head(layer: str, outputs: int) -> str | None:
    """Why vLLM cannot load an lm_head whose outputs are its tensors' columns; None when it can."""
    if is_head(layer) and outputs % HEAD_MULTIPLE:
        return f"ignore: {layer} has {outputs} outputs, no multiple of {HEAD_MULTIPLE} as vLLM needs; {_add(layer)}"
    return None


def _add(layer: str) -> str:
    """The fix for a layer that cannot be quantised."""
    return f"add {layer} to ignore"
