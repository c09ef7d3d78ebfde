# SPDX-License-Identifier: Apache-2.0
"""Which layers of a checkpoint a recipe quantises; what cannot be stored or served is refused before any is read."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from aerie.quant.architecture import Architecture
from aerie.quant.errors import QuantError, ShapeError
from aerie.quant.formats import FORMATS
from aerie.quant.formats.base import EXPERT, Selection, is_head
from aerie.quant.recipe import QuantRecipe
from aerie.quant.weight import Scheme

FUSED = {name: group for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")) for name in group}
"""Layers that vLLM computes as one, which is quantised or not."""

ROUTER = re.compile(r".*\.(gate|shared_expert_gate|classifier|router(\.\w+)?)$")
"""Layers that choose experts, or weight them: vLLM holds them in 16 bit whatever the recipe says."""


def scheme_of(recipe: QuantRecipe) -> Scheme:
    """What the recipe's weights can express."""
    size = 0 if recipe.group_size == "channel" else recipe.group_size
    return Scheme(size, recipe.symmetric, FORMATS[recipe.format].scale_dtype)


def select_layers(shapes: Mapping[str, tuple[int, ...]], architecture: Architecture, recipe: QuantRecipe) -> Selection:
    """The linear layers the recipe quantises, and those it keeps.

    Args:
        shapes: of the checkpoint's tensors.
        architecture: of its config.json.
        recipe: what to quantise and how.

    Raises:
        ShapeError: a layer's inputs are not a multiple of the group size.
        QuantError: a layer cannot be stored as asked, vLLM could not load the result, or nothing is left to quantise.
    """
    layers, kept = [], []
    for name, shape in sorted(shapes.items()):
        layer = name.removesuffix(".weight")
        if layer == name or len(shape) != 2 or layer in architecture.embeddings:
            continue
        if (
            _ignored(layer, recipe.ignore)
            or ROUTER.fullmatch(layer)
            or not (layer in architecture.linear or EXPERT.match(layer))
        ):
            kept.append(layer)
        else:
            _check(layer, shape[0], shape[1], recipe)
            layers.append(layer)
    if not layers:
        raise QuantError("recipe option ignore: leaves no linear layer to quantise; shorten it")
    _check_head(architecture, recipe)
    _check_fused(layers, kept)
    # Routers and the like are no linear layers of transformers' but are of vLLM's.
    rest = tuple(layer for layer in kept if not _ignored(layer, recipe.ignore))
    return Selection(tuple(layers), recipe.ignore + rest, tuple(sorted({_block(layer) for layer in kept})))


def _ignored(layer: str, patterns: Iterable[str]) -> bool:
    return any(
        re.match(pattern.removeprefix("re:"), layer) is not None if pattern.startswith("re:") else pattern == layer
        for pattern in patterns
    )


def _block(layer: str) -> str:
    """What vLLM computes as one: all experts of a layer, or the layer."""
    found = EXPERT.match(layer)
    return found[1] if found else layer


def _check(layer: str, outputs: int, inputs: int, recipe: QuantRecipe) -> None:
    if recipe.group_size != "channel" and inputs % recipe.group_size:
        fits = [size for size in (128, 64, 32) if inputs % size == 0]
        fix = f"set group_size: {fits[0]}" if fits else f"add it to ignore: [{layer}]"
        raise ShapeError(
            f"recipe option group_size: {layer} has {inputs} inputs, no multiple of {recipe.group_size}; {fix}"
        )
    reason = FORMATS[recipe.format].unsupported(scheme_of(recipe), layer, outputs, inputs)
    if reason is not None:
        raise QuantError(f"recipe option {reason} (format: {recipe.format})")


def _check_head(architecture: Architecture, recipe: QuantRecipe) -> None:
    head = next(filter(is_head, architecture.linear), None)
    if architecture.tied and head is not None and not _ignored(head, recipe.ignore):
        raise QuantError(
            f"recipe option ignore: {head} is the model's embeddings (tie_word_embeddings), which stay 16 bit as rows "
            f"are looked up in them; add {head} to ignore"
        )


def _check_fused(layers: Iterable[str], kept: Iterable[str]) -> None:
    sides: dict[tuple[str, tuple[str, ...]], dict[bool, str]] = defaultdict(dict)
    for quantised, names in ((True, layers), (False, kept)):
        for layer in names:
            parent, _, last = layer.rpartition(".")
            expert = EXPERT.match(layer)
            key = (expert[1], ("*",)) if expert else (parent, FUSED.get(last, (last,)))
            sides[key][quantised] = layer
    for both in sides.values():
        if len(both) == 2:
            raise QuantError(
                f"recipe option ignore: names {both[False]} but not {both[True]}, which vLLM computes together; "
                "ignore both or neither"
            )
