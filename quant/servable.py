# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint of a main model will load, decided from its configuration and headers: the rules of both
`aerie serve` and `aerie doctor --model`. docs/checkpoints.md is their table, tests/quant/test_servable.py holds it.

On a GPU vLLM serves more than on a CPU, and refuses the rest when it configures itself; what no device loads is here.
"""

from collections.abc import Mapping
from typing import Any

from aerie.quant.declared import AUTO_ROUND, AWQ, COMPRESSED_TENSORS, GPTQ, PER_CHANNEL, Declared, computed_as, declared
from aerie.quant.survey import LayerClass, Survey

INT4_METHODS = (*GPTQ, *AWQ, AUTO_ROUND, COMPRESSED_TENSORS)
PACKINGS = ("auto_round:auto_gptq", "auto_round:auto_awq")
FORMATS_ON_CPU = ("pack-quantized", "int-quantized", "float-quantized")
"""Of compressed-tensors: INT4, and 8-bit integers and floats with activations of 8 bits."""
PLAIN = "take the 16-bit checkpoint, or make it INT4 with `aerie quantize`"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers that vLLM quantises wherever the configuration does not leave them out."""


def refusal(surveyed: Survey, on_cpu: bool) -> tuple[str, str] | None:
    """What is wrong with a checkpoint, and the fix; None where it may load."""
    scheme = surveyed.quantization
    if not scheme:
        return None
    reasons = _order(scheme) if not on_cpu else (_order(scheme) or _method(scheme) or _bits(surveyed))
    if reasons is not None or surveyed.method not in INT4_METHODS:
        return reasons
    return _parts(surveyed) or _layers(surveyed)


def _order(scheme: Mapping[str, Any]) -> tuple[str, str] | None:
    fix = "quantise it again without, or make one with `aerie quantize`"
    rules = [scheme, *({**scheme, **rule} for rule in (scheme.get("dynamic") or {}).values())]
    if scheme.get("quant_method") in GPTQ and any(
        rule.get("desc_act") and rule.get("group_size") != PER_CHANNEL for rule in rules
    ):
        return "GPTQ with desc_act reorders activations, which vLLM no longer does", fix
    orders = {weights.get("actorder") for weights in _weights(scheme)}
    if orders & {"group", "dynamic"}:
        return "actorder group reorders activations, which vLLM no longer does", fix
    return None


def _method(scheme: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a CPU has no kernel for, whatever the layers."""
    method = scheme.get("quant_method") or "unnamed"
    if method not in INT4_METHODS:
        return f"quant_method {method} is not served on a CPU", PLAIN
    if method == COMPRESSED_TENSORS:
        formats = {group.get("format") or scheme.get("format") for group in _groups(scheme)} or {scheme.get("format")}
        if wrong := sorted(str(name) for name in formats - {*FORMATS_ON_CPU, None}):
            return f"compressed-tensors in the format {', '.join(wrong)} is not served on a CPU", PLAIN
        if "pack-quantized" in formats:
            wrong = [f"{weights.get('num_bits')}-bit {weights.get('type', 'int')}" for weights in _weights(scheme)]
            if set(wrong) != {"4-bit int"}:
                return f"packed weights of {' and '.join(sorted(set(wrong)))} are not served on a CPU, only INT4", PLAIN
    layout = str(scheme.get("version", "gemm")).lower()
    if method in AWQ and layout != "gemm":
        return f"AWQ in the layout {layout} is not loaded by vLLM, which knows gemm", PLAIN
    if method == AUTO_ROUND and (trouble := _auto_round(scheme)) is not None:
        return trouble, "export it with `--format auto_round:auto_gptq` or auto_round:auto_awq and 4 bits"
    return None


def _auto_round(scheme: Mapping[str, Any]) -> str | None:
    packing, kind = scheme.get("packing_format") or PACKINGS[0], scheme.get("data_type", "int")
    if kind != "int":
        return f"AutoRound weights of data_type {kind} are not served on a CPU"
    return None if packing in PACKINGS else f"AutoRound's packing_format {packing} is not loaded by vLLM"


def _bits(surveyed: Survey) -> tuple[str, str] | None:
    """Integers of other than 4 bits, for which a CPU has no kernel."""
    scheme = surveyed.quantization
    if surveyed.method == COMPRESSED_TENSORS:
        return None
    bits = scheme.get("bits", scheme.get("w_bit"))
    if bits != 4 and not any(layer.group_size is not None for layer in surveyed.by_name.values()):
        return f"{surveyed.method} weights of {bits} bits are not served on a CPU, only INT4", PLAIN
    for layer in surveyed.packed:
        layer_scheme = declared(scheme, layer)
        if layer_scheme is not None and layer_scheme.bits != 4:
            return f"{layer} has {layer_scheme.bits} bits, and a CPU serves 4 and 16", PLAIN
    return None


def _parts(surveyed: Survey) -> tuple[str, str] | None:
    """What vLLM computes as one must have one scheme."""
    first: dict[str, tuple[str, LayerClass]] = {}
    for name, layer in surveyed.by_name.items():
        whole = computed_as(name)
        if whole == name:
            continue
        other, scheme = first.setdefault(whole, (name, layer))
        if (layer.group_size is None) != (scheme.group_size is None):
            plain, packed = (name, other) if layer.group_size is None else (other, name)
            problem = f"{packed} is INT4 and {plain} in 16 bit, which vLLM computes as one ({whole})"
            return problem, "quantise both or neither"
    return None


def _layers(surveyed: Survey) -> tuple[str, str] | None:
    """What the configuration says of each layer must be what the files hold."""
    fix = "files and quantization_config are of two checkpoints: copy both again, or correct its rules"
    for name, layer in surveyed.by_name.items():
        scheme = declared(surveyed.quantization, name)
        if (problem := _misfit(surveyed, name, layer, scheme)) is not None:
            return f"{name} {problem}", fix
    return None


def _misfit(surveyed: Survey, name: str, layer: LayerClass, scheme: Declared | None) -> str | None:
    if layer.group_size is None:
        wrong = scheme is not None and _must_be_packed(surveyed, name)
        return "is in 16 bit in the files and quantised by quantization_config" if wrong else None
    if scheme is None:  # of lm_head, `Survey.refusal` tells
        wrong = name.rpartition(".")[2] in LINEAR
        return "is INT4 in the files and in 16 bit by quantization_config" if wrong else None
    sizes = {layer.group_size, layer.inputs} if layer.group_size == PER_CHANNEL else {layer.group_size}
    if scheme.group_size is not None and scheme.group_size not in sizes:
        return f"has groups of {layer.group_size} in the files and of {scheme.group_size} by quantization_config"
    return None


def _must_be_packed(surveyed: Survey, name: str) -> bool:
    """Whether vLLM would look for packed integers of a layer that has none."""
    if name.rpartition(".")[2] not in LINEAR or surveyed.method == AUTO_ROUND:
        return False
    headers_decide = surveyed.method in GPTQ or not surveyed.quantization.get("modules_to_not_convert")
    if surveyed.method == COMPRESSED_TENSORS or not headers_decide:
        return True
    return computed_as(name).endswith(".experts")


def _groups(scheme: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((scheme.get("config_groups") or {}).values())


def _weights(scheme: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [group.get("weights") or {} for group in _groups(scheme)]
