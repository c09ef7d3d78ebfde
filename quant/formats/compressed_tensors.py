# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors `pack-quantized`: the layout vLLM loads on every device.

A linear layer `L` is stored as `L.weight_packed` int32 [N, K/8] (eight values a word along K, value i in bits 4i to
4i+3, stored as q + 8), `L.weight_scale` [N, G] and `L.weight_shape` int64 [2] = (N, K).
Read against compressed-tensors 0.17.0, which vLLM 0.32 and 0.33 pin; the tests hold this file against that library.
"""

from collections.abc import Mapping
from typing import Any

import torch

VALUES_PER_WORD = 8
OFFSET = 8


def pack(q_NK: torch.Tensor) -> torch.Tensor:
    """Pack signed 4-bit integers int8 [N, K] into int32 [N, K/8]; K a multiple of 8."""
    n, k = q_NK.shape
    nibbles = (q_NK.to(torch.int32) + OFFSET).reshape(n, k // VALUES_PER_WORD, VALUES_PER_WORD)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (nibbles << shifts).sum(dim=-1, dtype=torch.int32)


def unpack(packed_NW: torch.Tensor) -> torch.Tensor:
    """Unpack int32 [N, K/8] into signed 4-bit integers int8 [N, K]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    nibbles = (packed_NW.unsqueeze(-1) >> shifts) & 0xF
    return (nibbles - OFFSET).to(torch.int8).flatten(start_dim=1)


def dequantise(packed_NW: torch.Tensor, scale_NG: torch.Tensor) -> torch.Tensor:
    """The float32 weight [N, K] a layer stands for. Exact: q * scale of a bfloat16 scale has at most 12 bits."""
    q_NK = unpack(packed_NW)
    n, k = q_NK.shape
    groups = scale_NG.shape[1]
    return (q_NK.float().reshape(n, groups, k // groups) * scale_NG.float().unsqueeze(-1)).reshape(n, k)


def layer_tensors(name: str, q_NK: torch.Tensor, scale_NG: torch.Tensor) -> dict[str, torch.Tensor]:
    """The three tensors that replace `name`.weight."""
    return {
        f"{name}.weight_packed": pack(q_NK),
        f"{name}.weight_scale": scale_NG.contiguous(),
        f"{name}.weight_shape": torch.tensor(q_NK.shape, dtype=torch.int64),
    }


def quantization_config(group_size: int, ignore: list[str]) -> dict[str, object]:
    """The `quantization_config` of config.json for symmetric INT4 groups."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": group_size,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": ignore,
    }


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes symmetric INT4 pack-quantized weights, the layout this file reads."""
    quantization = config.get("quantization_config") or {}
    groups = (quantization.get("config_groups") or {}).values()
    return quantization.get("format") == "pack-quantized" and all(
        group["weights"]["num_bits"] == 4 and group["weights"]["symmetric"] for group in groups
    )
