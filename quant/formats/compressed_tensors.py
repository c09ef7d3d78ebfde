# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors `pack-quantized`: the layout vLLM loads on every device, with or without zero points.

A linear layer `L` is stored as `L.weight_packed` int32 [N, K/8] (packed along K), `L.weight_scale` [N, G],
`L.weight_shape` int64 [2] = (N, K), and, when asymmetric, `L.weight_zero_point` int32 [N/8, G] (packed along N).
Read against compressed-tensors 0.17.0, which vLLM 0.32 and 0.33 pin; the tests hold this file against that library.
"""

from collections.abc import Mapping
from typing import Any

import torch

from aerie.quant.formats.base import EXPERT, Selection, indivisible, part
from aerie.quant.formats.nibbles import pack, unpack
from aerie.quant.weight import Int4Weight, Scheme


class CompressedTensors:
    """See the module."""

    name = "compressed-tensors"
    scale_dtype = torch.bfloat16
    kinds = frozenset({"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"})

    def unsupported(self, scheme: Scheme, layer: str, outputs: int, inputs: int) -> str | None:
        """Experts need groups, as all of vLLM's kernels for experts but one assert."""
        if not scheme.group_size and EXPERT.match(layer):
            return "group_size: vLLM serves experts of this format in groups only; set group_size: 128"
        return indivisible(layer, None if scheme.symmetric else outputs, inputs)

    def tensors(self, layer: str, weight: Int4Weight) -> dict[str, torch.Tensor]:
        """Three tensors, four with zero points."""
        stored = {
            f"{layer}.weight_packed": pack(weight.q_NK),
            f"{layer}.weight_scale": weight.scale_NG.contiguous(),
            f"{layer}.weight_shape": torch.tensor(weight.q_NK.shape, dtype=torch.int64),
        }
        if weight.zero_NG is not None:
            stored[f"{layer}.weight_zero_point"] = pack(weight.zero_NG.T).T.contiguous()
        return stored

    def quantization_config(self, scheme: Scheme, selection: Selection) -> dict[str, object]:
        """`ignore` is read as a recipe's is, against names as in the checkpoint."""
        # vLLM compares `Linear` with the class of its module, and its lm_head is of class ParallelLMHead.
        targets = ["Linear", r"re:.*lm_head$"] if selection.head else ["Linear"]
        return {
            "quant_method": self.name,
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": targets,
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "symmetric": scheme.symmetric,
                        "strategy": "group" if scheme.group_size else "channel",
                        "group_size": scheme.group_size or None,
                        "dynamic": False,
                    },
                    "input_activations": None,
                    "output_activations": None,
                }
            },
            "ignore": list(selection.ignore),
        }

    def describes(self, config: Mapping[str, Any]) -> Scheme | None:
        """Checkpoints whose groups of modules share one scheme of 4 bits."""
        quantization = config.get("quantization_config") or {}
        if quantization.get("format") != "pack-quantized":
            return None
        groups = (quantization.get("config_groups") or {}).values()
        schemes = {_scheme(group.get("weights") or {}) for group in groups}
        return schemes.pop() if len(schemes) == 1 else None

    def read(self, tensors: Mapping[str, torch.Tensor]) -> Int4Weight:
        """Zero points are there or not; rows that only fill their last word up are left out."""
        q_NK = unpack(part(tensors, "weight_packed"))
        zero = tensors.get("weight_zero_point")
        zero_NG = None if zero is None else unpack(zero.T).T[: q_NK.shape[0]].contiguous()
        return Int4Weight(q_NK, part(tensors, "weight_scale"), zero_NG)


def _scheme(weights: Mapping[str, Any]) -> Scheme | None:
    ordered = weights.get("actorder") in ("group", "dynamic")  # groups are of inputs that do not lie side by side
    if weights.get("num_bits") != 4 or weights.get("type", "int") != "int" or ordered:
        return None
    size = 0 if weights.get("strategy") == "channel" else weights.get("group_size")
    if size is None or size < 0:
        return None
    return Scheme(size, bool(weights.get("symmetric", True)), CompressedTensors.scale_dtype)
