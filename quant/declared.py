# SPDX-License-Identifier: Apache-2.0
"""What scheme a checkpoint's configuration gives each of its layers, read as vLLM and our classes in it read it.

GPTQ has `dynamic` rules, AutoRound `extra_config`, AWQ `modules_to_not_convert`, compressed-tensors `ignore`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GPTQ, AWQ = ("gptq", "auto_gptq", "gptq_marlin"), ("awq", "auto_awq", "awq_marlin")
AUTO_ROUND, COMPRESSED_TENSORS = "auto-round", "compressed-tensors"
LEGACY_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Where AutoGPTQ and AutoAWQ once wrote the scheme, beside a config.json that says nothing of it."""
PER_CHANNEL = -1
FUSED = {
    part: fused
    for fused, parts in {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }.items()
    for part in parts
}
"""Layers that vLLM makes one of."""
EXPERT = re.compile(r"(.*\.experts)\.\d+\.\w+$")
"""A linear layer of one expert, as checkpoints name it; the group is the name of all experts of its layer."""


@dataclass(frozen=True)
class Declared:
    """The scheme of a quantised layer."""

    bits: int
    group_size: int | None
    """PER_CHANNEL for all inputs; None where it is not said."""


def quantization_of(folder: Path, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The scheme of a checkpoint, empty for none, and whether it stands in a file of its own (LEGACY_FILES)."""
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(scheme := holder.get(key), dict):
                return scheme, False
    for name, method in LEGACY_FILES.items():
        path = folder / name
        if path.is_file():
            scheme = json.loads(path.read_text(encoding="utf-8"))
            return {"quant_method": method, **scheme}, True
    return {}, False


def computed_as(layer: str) -> str:
    """The name of what vLLM computes a layer in: fused projections, all experts of a layer, or itself."""
    if expert := EXPERT.match(layer):
        return expert[1]
    parent, _, last = layer.rpartition(".")
    return f"{parent}.{FUSED[last]}" if last in FUSED else layer


def declared(scheme: Mapping[str, Any], layer: str) -> Declared | None:
    """The scheme of a layer, by its name in the checkpoint; None for 16 bit."""
    method = scheme.get("quant_method")
    if layer == "lm_head" and method != COMPRESSED_TENSORS and not scheme.get("lm_head"):
        return (
            _auto_round(scheme, layer) if method == AUTO_ROUND and layer in (scheme.get("extra_config") or {}) else None
        )
    if method in GPTQ:
        return _gptq(scheme, layer)
    if method in AWQ:
        kept = scheme.get("modules_to_not_convert") or ()
        return None if any(name in computed_as(layer) for name in kept) else _plain(scheme)
    if method == AUTO_ROUND:
        return _auto_round(scheme, layer)
    return _compressed_tensors(scheme, layer) if method == COMPRESSED_TENSORS else None


def _plain(scheme: Mapping[str, Any]) -> Declared | None:
    bits = int(scheme.get("bits", scheme.get("w_bit")) or 0)
    size = scheme.get("group_size", scheme.get("q_group_size", PER_CHANNEL))
    return Declared(bits, size if isinstance(size, int) and size > 0 else PER_CHANNEL) if bits < 16 else None


def _gptq(scheme: Mapping[str, Any], layer: str) -> Declared | None:
    rules = (scheme.get("dynamic") or {}).items()
    for name in (computed_as(layer), layer):
        for pattern, rule in rules:
            if re.match(pattern[2:] if pattern[:2] in ("-:", "+:") else pattern, name):
                return None if pattern.startswith("-:") else _plain({**scheme, **rule})
    return _plain(scheme)


def _auto_round(scheme: Mapping[str, Any], layer: str) -> Declared | None:
    extra: Mapping[str, Any] = scheme.get("extra_config") or {}
    exact = [rule for name, rule in extra.items() if name == layer or layer.endswith(f".{name}")]
    matching = [rule for name, rule in extra.items() if set(name) & set("*+?^$()[]{}|\\") and re.search(name, layer)]
    if rules := exact or matching:
        return _plain({**scheme, **rules[0]})
    blocks = scheme.get("block_name_to_quantize", scheme.get("to_quant_block_names")) or ()
    names = blocks.split(",") if isinstance(blocks, str) else blocks
    return _plain(scheme) if not names or layer.startswith(tuple(names)) else None


def _compressed_tensors(scheme: Mapping[str, Any], layer: str) -> Declared | None:
    if _names(scheme.get("ignore") or (), layer):
        return None
    for group in (scheme.get("config_groups") or {}).values():
        targets = group.get("targets") or ("Linear",)
        if _names(targets, layer) or ("Linear" in targets and layer != "lm_head"):
            weights = group.get("weights") or {}
            size = PER_CHANNEL if weights.get("strategy") == "channel" else weights.get("group_size")
            return Declared(weights.get("num_bits") or 0, size)
    return None


def _names(patterns: Iterable[str], layer: str) -> bool:
    return any(re.match(name[3:], layer) if name.startswith("re:") else name == layer for name in patterns)
