# SPDX-License-Identifier: Apache-2.0
"""`aerie doctor --model FOLDER`: which kernel will serve which layers of a checkpoint on this machine, and why.

From config.json and the headers of the weights alone; the log of a loaded engine says the same of what it loaded.
"""

from collections.abc import Iterator
from pathlib import Path

from aerie.quant.survey import LayerClass, Survey, survey
from aerie.quant.vllm_linear import Dtype, serving_experts, serving_kernel
from aerie.server.doctor import Finding

FIX = "quantise it again in a shape that is served, leave the layer out, or see `aerie quantize`"


def checkpoint(folder: Path, dtype: Dtype | None = None) -> Iterator[Finding]:
    """A finding for each class of layers.

    Args:
        folder: the checkpoint, of a main model or of a draft.
        dtype: of the activations; None means what `aerie serve` would take.
    """
    surveyed = survey(folder)
    if surveyed.trouble is not None:
        yield Finding(folder.name, "missing", surveyed.trouble, FIX)
        return
    if surveyed.quantization and all(layer.group_size is None for layer in surveyed.layers):
        text = (
            f"quant_method {surveyed.method or 'unnamed'}, not of 4 bits or not known here: vLLM decides, its log tells"
        )
        yield Finding(folder.name, "off", text)
    for layer, count in surveyed.layers.items():
        yield _served(surveyed, layer, count, dtype)


def _served(surveyed: Survey, layer: LayerClass, count: int, dtype: Dtype | None) -> Finding:
    times = f", {count} times" if count > 1 else ""
    what = f"{layer}{times}"
    if layer.group_size is None:
        return Finding(layer.pattern, "ok", f"{what}: not INT4 here; vLLM's operators")
    try:
        if layer.expert:
            name, why = serving_experts(dtype)
        else:
            shape = (layer.outputs, layer.inputs)
            name, why = serving_kernel(dtype, layer.group_size, shape, layer.symmetric)
    except ValueError as error:
        return Finding(layer.pattern, "missing", f"{what}: {' '.join(str(error).split())}", FIX)
    refusal = surveyed.refusal(layer)
    if refusal is not None and (name.startswith("Aerie") or layer.expert):
        return Finding(layer.pattern, "missing", f"{what}: {refusal}", FIX)
    return Finding(layer.pattern, "ok", f"{what}: {name}, because {why}")
