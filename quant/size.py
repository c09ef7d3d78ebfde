# SPDX-License-Identifier: Apache-2.0
"""How large a model is in 16 bit and how large a recipe makes it, from its config.json alone.

Bytes of tensors: the headers of safetensors files, about a hundred bytes a tensor, are not counted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch

from aerie.quant.architecture import Architecture
from aerie.quant.formats import FORMATS
from aerie.quant.recipe import QuantRecipe
from aerie.quant.select import scheme_of, select_layers
from aerie.quant.weight import Int4Weight, Scheme

PLAIN_BYTES = 2
PARTS = {
    "lm_head": r"(.*\.)?lm_head\.",
    "embeddings": r".*embed",
    "norms": r".*norm\w*\.\w+$",
    "router": r".*\.(gate|router)\.\w+$",
    "experts": r".*\.experts\.",
    "attention": r".*(attn|attention)\.",
    "mlp": r".*mlp\.",
}
"""How names of tensors begin, the first that fits; what fits none is `other`."""


@dataclass(frozen=True)
class Size:
    """Of some tensors; add them up with +."""

    parameters: int = 0
    before: int = 0
    """Bytes in bfloat16."""
    after: int = 0
    """Bytes as the recipe stores them."""

    def __add__(self, other: "Size") -> "Size":
        return Size(self.parameters + other.parameters, self.before + other.before, self.after + other.after)

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before


def sizes(config: Mapping[str, Any], recipe: QuantRecipe) -> dict[str, Size]:
    """The size of each part of the model: those of `PARTS` it has, and `total`.

    Raises:
        QuantError: what `aerie quantize` would refuse of this model and recipe, and architectures it does not know.
    """
    architecture = Architecture.of(config)
    quantised = set(select_layers(architecture.shapes, architecture, recipe).layers)
    found = {"total": Size()}
    for name, shape in architecture.shapes.items():
        count = prod(shape)
        plain = after = PLAIN_BYTES * count
        if name.removesuffix(".weight") in quantised:
            after = _stored_bytes(recipe.format, scheme_of(recipe), shape)
        part = next((part for part, pattern in PARTS.items() if re.match(pattern, name)), "other")
        for key in (part, "total"):
            found[key] = found.get(key, Size()) + Size(count, plain, after)
    return found


@cache
def _stored_bytes(name: str, scheme: Scheme, shape: tuple[int, ...]) -> int:
    """What the format makes of a linear layer of this shape, asked of the format itself."""
    groups = (shape[0], scheme.groups(shape[1]))
    zero_NG = None if scheme.symmetric else torch.empty(groups, dtype=torch.uint8, device="meta")
    scale_NG = torch.empty(groups, dtype=scheme.scale_dtype, device="meta")
    weight = Int4Weight(torch.empty(shape, dtype=torch.uint8, device="meta"), scale_NG, zero_NG)
    return sum(tensor.nbytes for tensor in FORMATS[name].tensors("layer", weight).values())
