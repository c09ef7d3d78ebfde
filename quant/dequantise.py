# SPDX-License-Identifier: Apache-2.0
"""The plain checkpoint an INT4 one stands for, with exactly its values: for training on it and for comparing to it."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from aerie.artefacts import output_directory
from aerie.quant.errors import NotQuantisedError
from aerie.quant.formats import compressed_tensors
from aerie.quant.stream import Checkpoint, rewrite

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _write(int4_dir: Path, staging: Path, dtype: Literal["float32", "bfloat16"]) -> None:
    source = Checkpoint.open(int4_dir)
    if not compressed_tensors.is_ours(source.config):
        raise NotQuantisedError(
            f"{int4_dir}: config.json does not describe symmetric INT4 pack-quantized weights; make them with "
            "`aerie quantize MODEL OUT`"
        )
    waiting: dict[str, torch.Tensor] = {}
    target = torch.float32 if dtype == "float32" else torch.bfloat16

    def convert(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        layer, _, kind = name.rpartition(".")
        if kind == "weight_shape":
            return {}
        if kind == "weight_packed":
            waiting[layer] = tensor
            return {}
        if kind == "weight_scale":
            # Names come in order, so the packed half of a layer has been read just before.
            return {f"{layer}.weight": compressed_tensors.dequantise(waiting.pop(layer), tensor).to(target)}
        return {name: tensor.to(target) if tensor.is_floating_point() else tensor}

    config = {key: value for key, value in source.config.items() if key not in ("quantization_config", "torch_dtype")}
    rewrite(source, staging, convert, {**config, "dtype": dtype})


def dequantise_checkpoint(int4_dir: Path, out: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
    """Write the unquantised checkpoint with the values of an INT4 one; whole or not at all.

    float32 holds the values exactly; bfloat16 rounds them (a 4-bit integer times a bfloat16 scale has up to 12 bits).

    Raises:
        QuantError: `int4_dir` is not a checkpoint, or not one of INT4 pack-quantized weights.
    """
    with output_directory(out) as staging:
        _write(int4_dir, staging, dtype)


def load_dequantised(int4_dir: Path) -> "PreTrainedModel":
    """The transformers model of an INT4 checkpoint, float32, in evaluation mode, with exactly the INT4 values.

    Raises:
        QuantError: `int4_dir` is not a checkpoint, or not one of INT4 pack-quantized weights.
    """
    from transformers import AutoModelForCausalLM, PreTrainedModel

    with tempfile.TemporaryDirectory(prefix="aerie-dequantised-") as directory:
        _write(int4_dir, Path(directory), "float32")
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"transformers returned {type(model).__name__} for {int4_dir}")
    model.train(False)
    return model
