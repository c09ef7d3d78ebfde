# SPDX-License-Identifier: Apache-2.0
"""The plain checkpoint an INT4 one stands for, with exactly its values: for training on it and for comparing to it."""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from aerie.artefacts import output_directory
from aerie.quant.errors import NotQuantisedError
from aerie.quant.formats import FORMATS, recognise
from aerie.quant.stream import Checkpoint, rewrite

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _write(int4_dir: Path, staging: Path, dtype: Literal["float32", "bfloat16"]) -> None:
    source = Checkpoint.open(int4_dir)
    layout = recognise(source.config)
    if layout is None:
        raise NotQuantisedError(
            f"{int4_dir}: config.json does not describe INT4 weights in a format that we read ({', '.join(FORMATS)}); "
            "make them with `aerie quantize MODEL OUT`"
        )
    kinds: dict[str, set[str]] = defaultdict(set)
    for name in source.shapes():
        layer, _, kind = name.rpartition(".")
        if kind in layout.kinds:
            kinds[layer].add(kind)
    waiting: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    target = torch.float32 if dtype == "float32" else torch.bfloat16

    def convert(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        layer, _, kind = name.rpartition(".")
        if kind not in layout.kinds:
            return {name: tensor.to(target) if tensor.is_floating_point() else tensor}
        waiting[layer][kind] = tensor
        # The last tensor of a layer completes it, in whichever shard it lies.
        if waiting[layer].keys() != kinds[layer]:
            return {}
        return {f"{layer}.weight": layout.read(waiting.pop(layer)).dequantise().to(target)}

    config = {key: value for key, value in source.config.items() if key not in ("quantization_config", "torch_dtype")}
    rewrite(source, staging, convert, {**config, "dtype": dtype})


def dequantise_checkpoint(int4_dir: Path, out: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
    """Write the unquantised checkpoint with the values of an INT4 one; whole or not at all.

    float32 holds the values exactly; bfloat16 rounds them (an integer times a scale has 12 bits or more).

    Raises:
        QuantError: `int4_dir` is not a checkpoint, or not one of INT4 weights in a format that we read.
    """
    with output_directory(out) as staging:
        _write(int4_dir, staging, dtype)


def load_dequantised(int4_dir: Path) -> "PreTrainedModel":
    """The transformers model of an INT4 checkpoint, float32, in evaluation mode, with exactly the INT4 values.

    Raises:
        QuantError: `int4_dir` is not a checkpoint, or not one of INT4 weights in a format that we read.
    """
    from transformers import AutoModelForCausalLM, PreTrainedModel

    with tempfile.TemporaryDirectory(prefix="aerie-dequantised-") as directory:
        _write(int4_dir, Path(directory), "float32")
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"transformers returned {type(model).__name__} for {int4_dir}")
    model.train(False)
    return model
