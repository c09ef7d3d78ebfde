# SPDX-License-Identifier: Apache-2.0
"""What layers a checkpoint holds and how they are quantised, from config.json and the headers of its weights alone.

Neither torch nor vLLM is imported: what cannot be served is refused, by name, before either is.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aerie.kernels.w4a16_cpu import PER_CHANNEL, unsupported
from aerie.quant.declared import AUTO_ROUND, AWQ, COMPRESSED_TENSORS, GPTQ, declared, quantization_of
from aerie.quant.errors import NotACheckpointError
from aerie.quant.header import read_header

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
EXPERT = re.compile(r"\.experts\.")
PACKED = {COMPRESSED_TENSORS: "weight_packed", **dict.fromkeys((*GPTQ, *AWQ, AUTO_ROUND), "qweight")}
"""By `quant_method`, the tensor that holds a quantised layer's integers."""
VALUES_PER_WORD = 8
VOCABULARY_MULTIPLE = 64
"""To which vLLM pads an lm_head; where outputs are columns, its loader then copies between unequal shapes."""
Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor."""


def pattern(name: str) -> str:
    """The name that layers differing in a number share: `model.layers.*.mlp.down_proj`."""
    return NUMBER.sub("*", name)


@dataclass(frozen=True)
class LayerClass:
    """Layers alike in all but a number in their names."""

    pattern: str
    outputs: int
    inputs: int
    dtype: str
    """As safetensors names it; of INT4 layers that of the scales."""
    group_size: int | None = None
    """Inputs that share a scale, -1 for all; None for a layer that is not INT4."""
    symmetric: bool = True

    @property
    def expert(self) -> bool:
        """Whether these are one projection of a mixture's experts."""
        return EXPERT.search(self.pattern) is not None

    def __str__(self) -> str:
        """Shape and scheme in words."""
        shape = f"{self.outputs} x {self.inputs}"
        if self.group_size is None:
            return f"{shape}, {self.dtype}"
        scales = "one scale an output" if self.group_size == PER_CHANNEL else f"groups of {self.group_size}"
        return f"{shape}, INT4 {'symmetric' if self.symmetric else 'with zero points'}, {scales}"


@dataclass(frozen=True)
class Survey:
    """A checkpoint's layers."""

    quantization: Mapping[str, Any]
    """`quantization_config` of config.json, or what stands in a file of its own; empty where there is none."""
    by_name: Mapping[str, LayerClass]
    """Every layer, but those of integers that are not of 4 bits."""
    packed: frozenset[str] = frozenset()
    """Names of all layers of packed integers, whatever their bits."""
    legacy: bool = False
    """Whether the scheme stands in a file of its own, where vLLM looks only when it is told the method."""

    @property
    def layers(self) -> Mapping[LayerClass, int]:
        """Layers alike, and how many there are of each."""
        return Counter(self.by_name.values())

    @property
    def method(self) -> str:
        """The checkpoint's `quant_method`, empty for none."""
        return str(self.quantization.get("quant_method", ""))

    def refusal(self, layer: LayerClass, on_cpu: bool = True) -> str | None:
        """Why these layers cannot be loaded or, on a CPU, our kernels cannot serve them; None when they can."""
        if layer.group_size is None:
            return None
        if on_cpu and (reason := unsupported(layer.inputs, layer.group_size)) is not None:
            return reason
        if not layer.symmetric and layer.outputs % VALUES_PER_WORD:
            return f"{layer.outputs} outputs with zero points are no multiple of {VALUES_PER_WORD}"
        if layer.pattern == "lm_head" and not self._names_lm_head():
            return "lm_head is INT4, but quantization_config does not name it, and vLLM would look for a plain one"
        if layer.pattern == "lm_head" and self.method != COMPRESSED_TENSORS and layer.outputs % VOCABULARY_MULTIPLE:
            return (
                f"vLLM pads {layer.outputs} outputs of lm_head to a multiple of {VOCABULARY_MULTIPLE}, and loads none"
            )
        if packs_as_awq(self.quantization) and layer.expert and layer.group_size == PER_CHANNEL:
            return "AWQ experts with one scale an output cannot be loaded by vLLM"
        return None

    def _names_lm_head(self) -> bool:
        return declared(self.quantization, "lm_head") is not None


def survey(directory: Path) -> Survey:
    """Look at a checkpoint.

    Raises:
        NotACheckpointError: config.json or a header is missing or damaged.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        quantization, legacy = quantization_of(directory, config)
    except (OSError, ValueError, TypeError) as error:
        raise NotACheckpointError(f"{path}: cannot be read ({error}); fetch it again") from error
    check_shards(directory)
    tensors = headers(sorted(directory.glob("*.safetensors")))
    kind = PACKED.get(str(quantization.get("quant_method", "")))
    packed = frozenset(layer for layer, _, last in (name.rpartition(".") for name in tensors) if last == kind)
    return Survey(quantization, layers_by_name(tensors, quantization), packed, legacy)


def check_shards(directory: Path) -> None:
    """Every file that an index names must be there. Raises NotACheckpointError."""
    for path in sorted(directory.glob("*.safetensors.index.json")):
        try:
            files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotACheckpointError(f"{path}: cannot be read ({error}); fetch it again") from error
        if missing := sorted(str(name) for name in files if not (directory / str(name)).is_file()):
            raise NotACheckpointError(f"{path}: names {missing[0]}, which is not there; fetch it again")


def headers(files: Iterable[Path]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in some safetensors files."""
    return {name: (one.kind, one.shape) for path in files for name, one in read_header(path).items()}


def layers_by_name(tensors: Headers, quantization: Mapping[str, Any]) -> dict[str, LayerClass]:
    """Every matrix among the tensors as a layer, quantised ones put together again; without those of other bits."""
    packed = PACKED.get(str(quantization.get("quant_method", ""))) if _has_4_bits(quantization) else None
    layers: dict[str, LayerClass] = {}
    for name, (dtype, shape) in sorted(tensors.items()):
        layer, _, kind = name.rpartition(".")
        if packed is not None and kind == packed:
            scheme = declared(quantization, layer)
            if scheme is None or scheme.bits == 4:
                layers[layer] = _int4(layer, tensors, quantization)
        elif kind == "weight" and len(shape) >= 2:
            layers[layer] = LayerClass(pattern(layer), shape[-2], shape[-1], dtype)
    return layers


def packs_as_awq(quantization: Mapping[str, Any]) -> bool:
    """Whether integers are packed along the outputs, in AWQ's order."""
    method, packing = quantization.get("quant_method"), str(quantization.get("packing_format", ""))
    return method in AWQ or (method == AUTO_ROUND and "awq" in packing)


def _has_4_bits(quantization: Mapping[str, Any]) -> bool:
    groups = (quantization.get("config_groups") or {}).values()
    if groups:
        return {(group.get("weights") or {}).get("num_bits") for group in groups} == {4}
    rules = [
        quantization,
        *(quantization.get("dynamic") or {}).values(),
        *(quantization.get("extra_config") or {}).values(),
    ]
    return any(rule.get("bits", rule.get("w_bit")) == 4 for rule in rules)


def _int4(layer: str, tensors: Headers, quantization: Mapping[str, Any]) -> LayerClass:
    method = quantization["quant_method"]
    compressed, awq = method == COMPRESSED_TENSORS, packs_as_awq(quantization)
    scales = f"{layer}.{'weight_scale' if compressed else 'scales'}"
    if scales not in tensors:
        raise NotACheckpointError(f"{layer}: has packed integers but no {scales}")
    dtype, scale_shape = tensors[scales]
    first, second = tensors[f"{layer}.{PACKED[method]}"][1]
    if compressed:
        outputs, groups = scale_shape
        inputs, symmetric = VALUES_PER_WORD * second, f"{layer}.weight_zero_point" not in tensors
    else:
        groups, outputs = scale_shape
        inputs = first if awq else VALUES_PER_WORD * first
        symmetric = (
            not quantization.get("zero_point", method == AUTO_ROUND) if awq else bool(quantization.get("sym", True))
        )
    group_size = PER_CHANNEL if groups == 1 else inputs // groups
    return LayerClass(pattern(layer), outputs, inputs, dtype, group_size, symmetric)
