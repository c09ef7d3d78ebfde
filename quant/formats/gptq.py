# SPDX-License-Identifier: Apache-2.0
"""GPTQ, version 1, as AutoGPTQ and GPTQModel write it: symmetric only, for vLLM loads no other.

A linear layer `L` is stored as `L.qweight` int32 [K/8, N] (packed along K), `L.scales` float16 [G, N] and `L.qzeros`
int32 [G, N/8] (packed along N), which hold z - 1. `L.g_idx` is not written: inputs are in order, and vLLM drops it.
Read against vLLM 0.32.0 (`layers/quantization/auto_gptq.py`, `utils/gptq_utils.py`).
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from aerie.quant.formats.base import Selection, indivisible, is_head, part, unpadded_head
from aerie.quant.formats.nibbles import pack, unpack
from aerie.quant.weight import MIDDLE, Int4Weight, Scheme


class Gptq:
    """See the module."""

    name = "gptq"
    scale_dtype = torch.float16
    kinds = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    def unsupported(self, scheme: Scheme, layer: str, outputs: int, inputs: int) -> str | None:
        """Zero points, which vLLM refuses, and sizes that words do not hold."""
        if not scheme.symmetric:
            return (
                "symmetric: vLLM loads no GPTQ weights with zero points; set symmetric: true, or format: "
                "compressed-tensors or awq"
            )
        return indivisible(layer, outputs, inputs) or unpadded_head(layer, outputs)

    def tensors(self, layer: str, weight: Int4Weight) -> dict[str, torch.Tensor]:
        """Three tensors; the zero points are all 8, stored as 7, for readers that look at them."""
        zero_GN = torch.full_like(weight.scale_NG.T, MIDDLE - 1, dtype=torch.uint8)
        return {
            f"{layer}.qweight": pack(weight.q_NK).T.contiguous(),
            f"{layer}.qzeros": pack(zero_GN),
            f"{layer}.scales": weight.scale_NG.T.contiguous(),
        }

    def quantization_config(self, scheme: Scheme, selection: Selection) -> dict[str, object]:
        """`dynamic` holds a rule for each layer, or a layer's experts, that stays 16 bit.

        vLLM finds plain linear layers in the files' headers, the parts of fused ones too, but experts by rules alone.
        """
        kept = [name for name in selection.kept if not is_head(name)]
        return {
            "quant_method": self.name,
            "bits": 4,
            "group_size": scheme.group_size or -1,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "lm_head": selection.head,
            "dynamic": {rf"-:{re.escape(name)}\b": {} for name in kept},
        }

    def describes(self, config: Mapping[str, Any]) -> Scheme | None:
        """Symmetric checkpoints of 4 bits throughout, of either version, with inputs in order."""
        quantization = config.get("quantization_config") or {}
        size = quantization.get("group_size")
        if quantization.get("quant_method") != self.name or quantization.get("bits") != 4 or not size:
            return None
        reordered = quantization.get("desc_act") and size != -1
        mixed = any(not rule.startswith("-:") for rule in quantization.get("dynamic") or {})
        if not quantization.get("sym") or reordered or mixed:
            return None
        return Scheme(max(size, 0), True, self.scale_dtype)

    def read(self, tensors: Mapping[str, torch.Tensor]) -> Int4Weight:
        """`qzeros` are not looked at: a symmetric checkpoint's are all 8, by whichever version's convention."""
        return Int4Weight(unpack(part(tensors, "qweight").T), part(tensors, "scales").T.contiguous())
