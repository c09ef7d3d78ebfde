# SPDX-License-Identifier: Apache-2.0
"""`aerie doctor --model FOLDER`: which kernel will serve which layers of a checkpoint on this machine, and why.

From config.json and the headers of the weights alone; the log of a loaded engine says the same of what it loaded. On
several GPUs each holds a share of a layer, of which another kernel may be the faster: there only the log tells.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from aerie.draft_models.checkpoint import DraftMismatch, is_head, verify_alone
from aerie.quant.servable import refusal
from aerie.quant.survey import LayerClass, Survey, survey
from aerie.quant.vllm_linear import Dtype, serving_experts, serving_kernel
from aerie.server.doctor import Finding
from aerie.server.plan import device

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that vLLM makes one of, where a checkpoint has several."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names in config.json of how many experts a layer has."""
FIX = "quantise it again in a shape that is served, leave the layer out, or see `aerie quantize`"


def checkpoint(folder: Path, dtype: Dtype | None = None) -> Iterator[Finding]:
    """A finding for each class of layers.

    Args:
        folder: the checkpoint, of a main model or of a draft.
        dtype: of the activations; None means what `aerie serve` would take.
    """
    surveyed = survey(folder)
    if (reason := head_trouble(folder)) is not None:
        yield Finding(folder.name, "missing", reason, "`aerie draft verify` tells it with its target")
        return
    if (refused := refusal(surveyed, device() == "cpu")) is not None:
        yield Finding(folder.name, "missing", *refused)
        return
    if surveyed.quantization and all(layer.group_size is None for layer in surveyed.layers):
        text = (
            f"quant_method {surveyed.method or 'unnamed'}, not of 4 bits or not known here: vLLM decides, its log tells"
        )
        yield Finding(folder.name, "off", text)
    for layer, count in surveyed.layers.items():
        yield _served(surveyed, layer, count, dtype, experts(folder))


def head_trouble(folder: Path) -> str | None:
    """Why a folder's EAGLE-3 head could be served with no target; None for a sound one, and for a language model."""
    try:
        if any(folder.glob("*.safetensors")) and is_head(folder):
            verify_alone(folder)
    except DraftMismatch as error:
        return str(error).partition(": ")[2]
    return None


def experts(folder: Path) -> int:
    """How many experts a layer of a checkpoint has; 1 where it has no such layers."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    return next((int(text[name]) for name in EXPERTS if text.get(name)), 1)


def fused_outputs(surveyed: Survey, layer: LayerClass) -> int:
    """Outputs of the layer that vLLM makes of this one and its siblings."""
    parent, _, last = layer.pattern.rpartition(".")
    names = [f"{parent}.{name}" for names in FUSED if last in names for name in names]
    siblings = [other for other in surveyed.layers if other.pattern in names and other.inputs == layer.inputs]
    alike = len({(other.group_size, other.symmetric) for other in siblings}) == 1
    whole = sorted(other.pattern for other in siblings) == sorted(names)
    return sum(other.outputs for other in siblings) if names and alike and whole else layer.outputs


def _served(surveyed: Survey, layer: LayerClass, count: int, dtype: Dtype | None, experts: int) -> Finding:
    times = f", {count} times" if count > 1 else ""
    what = f"{layer}{times}"
    if layer.group_size is None:
        return Finding(layer.pattern, "ok", f"{what}: not INT4 here; vLLM's operators")
    outputs = fused_outputs(surveyed, layer)
    if outputs != layer.outputs:
        what += f", in one of {outputs} x {layer.inputs}"
    try:
        if layer.expert:
            name, why = serving_experts(dtype, layer.group_size, _gate_up(layer, experts))
        else:
            name, why = serving_kernel(dtype, layer.group_size, (outputs, layer.inputs), layer.symmetric)
    except ValueError as error:
        return Finding(layer.pattern, "missing", f"{what}: {' '.join(str(error).split())}", FIX)
    refusal = surveyed.refusal(layer, device() == "cpu")
    if refusal is not None and (name.startswith("Aerie") or layer.expert):
        return Finding(layer.pattern, "missing", f"{what}: {refusal}", FIX)
    return Finding(layer.pattern, "ok", f"{what}: {name}, because {why}")


def _gate_up(layer: LayerClass, experts: int) -> tuple[int, int, int]:
    """How many experts, and outputs and inputs of gate over up, from any of an expert's three layers."""
    down = layer.pattern.endswith("down_proj")
    hidden, inner = (layer.outputs, layer.inputs) if down else (layer.inputs, layer.outputs)
    return experts, 2 * inner, hidden
