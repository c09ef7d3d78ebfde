# SPDX-License-Identifier: Apache-2.0
"""Targets and heads that no training can bring together, refused before anything is computed."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aerie.draft_models.targets import registry, supports_eagle3
from aerie.quant.errors import QuantError
from aerie.quant.header import read_header
from aerie.trainer.recipe import RecipeError

ROTATED = re.compile(r"quarot|spinquant|rotat|hadamard|transform_config", re.IGNORECASE)
"""Keys and values by which quantisers (compressed-tensors, Quark, QuaRot, SpinQuant) say that they rotated."""
SWITCH = ("rope", "rotary")
"""Their rotation is another."""


def check_basis(target: Path) -> None:
    """Raise RecipeError for a target whose quantiser rotated its residual stream.

    Its hidden states are in a basis of their own, in which a head learns badly: acceptance collapses (vllm-ascend
    issue 5974).
    """
    quantisation = _config(target).get("quantization_config") or {}
    if found := next(_rotations(quantisation, "quantization_config"), None):
        raise RecipeError(
            f"target: {target} was rotated by its quantiser ({found}): its hidden states are in a rotated basis, where "
            f"a draft head's acceptance collapses; quantise without rotation (AWQ, GPTQ, `aerie quantize`)"
        )


def check_tokenizer(target: Path) -> None:
    """Raise RecipeError when the target's tokenizer makes ids that its embeddings lack."""
    from transformers import AutoTokenizer

    size, known = len(AutoTokenizer.from_pretrained(target)), _text_config(target)["vocab_size"]
    if size > known:
        raise RecipeError(
            f"target: the tokenizer of {target} has {size} tokens, its model {known}: they are not of one model; put "
            f"the model's own tokenizer there"
        )


def check_same_vocabulary(start: Path, target: Path) -> None:
    """Raise RecipeError when a head to start from was made for another vocabulary than the target's."""
    config = _config(start)
    # The speculators format keeps it with the layer.
    theirs = (config.get("transformer_layer_config") or config).get("vocab_size")
    ours = _text_config(target)["vocab_size"]
    if theirs != ours:
        raise RecipeError(
            f"head.start: {start} drafts for a vocabulary of {theirs} tokens, the target has {ours}; start from a head "
            f"made for this target's tokenizer, or from none"
        )
    for name in ("tokenizer.json",):
        if (start / name).is_file() and (target / name).is_file():
            vocabularies = [json.loads((folder / name).read_text())["model"]["vocab"] for folder in (start, target)]
            if vocabularies[0] != vocabularies[1]:
                raise RecipeError(
                    f"head.start: {start} has another {name} than {target}: the same ids mean other tokens; start from "
                    f"a head made for this target's tokenizer, or from none"
                )


def check_served(target: Path) -> None:
    """Raise RecipeError when vLLM's class for the target hands out no hidden states, as EAGLE-3 needs."""
    names = _config(target).get("architectures") or []
    if not any(name in registry() for name in names):
        raise RecipeError(f"target: vLLM does not serve {', '.join(names) or 'a model without architectures'}")
    if any(supports_eagle3(name) is False for name in names):
        raise RecipeError(
            f"target: vLLM's {names[0]} has no EAGLE-3 interface (SupportsEagle3), so a head for it could not be served"
        )


def check_files(target: Path) -> None:
    """Raise RecipeError when a target is no folder of a whole checkpoint; reads headers, no weights."""
    if not target.is_dir():
        raise RecipeError(
            f"target: {target} is not a folder; give that of a main model (`hf download NAME --local-dir FOLDER` "
            f"fetches one of the hub)"
        )
    _config(target)
    shards = sorted(target.glob("*.safetensors"))
    if not shards:
        raise RecipeError(f"target: {target} has no *.safetensors; save the weights so, as docs/checkpoints.md shows")
    try:
        for shard in shards:
            read_header(shard)
    except QuantError as error:
        raise RecipeError(f"target: {error}") from error


def _rotations(value: object, where: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner not in (None, False, {}, [], "") and _tells(str(key)):
                yield f"{where}.{key}"
            yield from _rotations(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _rotations(inner, f"{where}[{index}]")
    elif isinstance(value, str) and _tells(value):
        yield f"{where}: {value}"


def _tells(text: str) -> bool:
    return ROTATED.search(text) is not None and not any(other in text.lower() for other in SWITCH)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{folder}: no readable config.json ({error}); give the folder of a checkpoint") from error
    return config


def _text_config(folder: Path) -> dict[str, Any]:
    config = _config(folder)
    text: dict[str, Any] = config.get("text_config") or config
    return text
