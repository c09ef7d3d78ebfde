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
from aerie.quant.errors import NotACheckpointError
from aerie.quant.header import read_header

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
EXPERT = re.compile(r"\.experts\.")
PACKED = {"compressed-tensors": "weight_packed", "gptq": "qweight", "awq": "qweight"}
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
    """`quantization_config` of config.json; empty where there is none."""
    layers: Mapping[LayerClass, int]
    """With how many there are of each."""

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
        if layer.pattern == "lm_head" and self.method in ("gptq", "awq") and layer.outputs % VOCABULARY_MULTIPLE:
            return (
                f"vLLM pads {layer.outputs} outputs of lm_head to a multiple of {VOCABULARY_MULTIPLE}, and loads none"
            )
        if self.method == "awq" and layer.expert and layer.group_size == PER_CHANNEL:
            return "AWQ experts with one scale an output cannot be loaded by vLLM"
        return None

    def _names_lm_head(self) -> bool:
        if self.method != "compressed-tensors":
            return bool(self.quantization.get("lm_head", False))
        targets = [target for group in self._groups() for target in group.get("targets", ())]
        return any(
            re.match(target.removeprefix("re:"), "lm_head") if target.startswith("re:") else target == "lm_head"
            for target in targets
        )

    def _groups(self) -> list[Mapping[str, Any]]:
        return list((self.quantization.get("config_groups") or {}).values())

    @property
    def trouble(self) -> str | None:
        """Why vLLM loads no such checkpoint at all, None when it may."""
        if self.method == "gptq" and self.quantization.get("desc_act") and self.quantization.get("group_size") != -1:
            return "GPTQ with desc_act reorders activations, which vLLM no longer does"
        orders = {(group.get("weights") or {}).get("actorder") for group in self._groups()}
        if orders & {"group", "dynamic"}:
            return "actorder group reorders activations, which vLLM no longer does"
        return None


def survey(directory: Path) -> Survey:
    """Look at a checkpoint.

    Raises:
        NotACheckpointError: config.json or a header is missing or damaged.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotACheckpointError(f"{directory}: config.json cannot be read ({error})") from error
    quantization = config.get("quantization_config") or {}
    return Survey(quantization, layer_classes(headers(sorted(directory.glob("*.safetensors"))), quantization))


def headers(files: Iterable[Path]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in some safetensors files."""
    return {name: (one.kind, one.shape) for path in files for name, one in read_header(path).items()}


def layer_classes(tensors: Headers, quantization: Mapping[str, Any]) -> dict[LayerClass, int]:
    """Every matrix among the tensors as a layer, quantised ones put together again."""
    packed = PACKED.get(str(quantization.get("quant_method", ""))) if _is_4_bit(quantization) else None
    counts: Counter[LayerClass] = Counter()
    for name, (dtype, shape) in sorted(tensors.items()):
        layer, _, kind = name.rpartition(".")
        if packed is not None and kind == packed:
            counts[_int4(layer, tensors, quantization)] += 1
        elif kind == "weight" and len(shape) >= 2:
            counts[LayerClass(pattern(layer), shape[-2], shape[-1], dtype)] += 1
    return dict(counts)


def _is_4_bit(quantization: Mapping[str, Any]) -> bool:
    groups = (quantization.get("config_groups") or {}).values()
    bits = {(group.get("weights") or {}).get("num_bits") for group in groups} or {quantization.get("bits")}
    return bits == {4}


def _int4(layer: str, tensors: Headers, quantization: Mapping[str, Any]) -> LayerClass:
    method = quantization["quant_method"]
    compressed = method == "compressed-tensors"
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
        inputs = first if method == "awq" else VALUES_PER_WORD * first
        symmetric = not quantization.get("zero_point", False) if method == "awq" else bool(quantization.get("sym"))
    group_size = PER_CHANNEL if groups == 1 else inputs // groups
    return LayerClass(pattern(layer), outputs, inputs, dtype, group_size, symmetric)
