# SPDX-License-Identifier: Apache-2.0
"""AWQ `gemm`, as AutoAWQ writes it: every group has a zero point, which is 8 for a symmetric weight.

A linear layer `L` is stored as `L.qweight` int32 [K, N/8], `L.qzeros` int32 [G, N/8] and `L.scales` float16 [G, N].
Words are packed along N in an order of their own: nibbles i and i + 4 hold a pair of columns, so that one mask yields
the two halves of a register.
Read against vLLM 0.32.0 (`layers/quantization/auto_awq.py`, `utils/quant_utils.py`).
"""

from collections.abc import Mapping
from typing import Any

import torch

from aerie.quant.formats.base import EXPERT, Selection, indivisible, part, unpadded_head
from aerie.quant.formats.nibbles import pack, unpack
from aerie.quant.weight import MIDDLE, Int4Weight, Scheme

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Awq:
    """See the module."""

    name = "awq"
    scale_dtype = torch.float16
    kinds = frozenset({"qweight", "qzeros", "scales"})

    def unsupported(self, scheme: Scheme, layer: str, outputs: int, inputs: int) -> str | None:
        """Experts per channel, for whose groups vLLM divides by -1, and sizes that words do not hold."""
        if not scheme.group_size and EXPERT.match(layer):
            return "group_size: vLLM loads experts of this format in groups only; set group_size: 128"
        # vLLM packs the weight along K again.
        return indivisible(layer, outputs, inputs) or unpadded_head(layer, outputs)

    def tensors(self, layer: str, weight: Int4Weight) -> dict[str, torch.Tensor]:
        """Three tensors."""
        zero_NG = weight.zero_NG
        if zero_NG is None:
            zero_NG = torch.full_like(weight.scale_NG, MIDDLE, dtype=torch.uint8)
        return {
            f"{layer}.qweight": pack(weight.q_NK.T, ORDER),
            f"{layer}.qzeros": pack(zero_NG.T, ORDER),
            f"{layer}.scales": weight.scale_NG.T.contiguous(),
        }

    def quantization_config(self, scheme: Scheme, selection: Selection) -> dict[str, object]:
        """Modules stay 16 bit in vLLM whose name, or that of a part, has one of `modules_to_not_convert` in it."""
        return {
            "quant_method": self.name,
            "bits": 4,
            "group_size": scheme.group_size or -1,
            "zero_point": True,
            "version": "gemm",
            "lm_head": selection.head,
            "modules_to_not_convert": list(selection.kept),
        }

    def describes(self, config: Mapping[str, Any]) -> Scheme | None:
        """Checkpoints of 4 bits in the `gemm` layout; none says whether all its zero points are 8."""
        quantization = config.get("quantization_config") or {}
        size = quantization.get("group_size", quantization.get("q_group_size"))
        bits = quantization.get("bits", quantization.get("w_bit"))
        layout = str(quantization.get("version", "gemm")).lower()
        if quantization.get("quant_method") != self.name or bits != 4 or not size or layout != "gemm":
            return None
        return Scheme(max(size, 0), False, self.scale_dtype) if quantization.get("zero_point") else None

    def read(self, tensors: Mapping[str, torch.Tensor]) -> Int4Weight:
        """Always with zero points."""
        q_NK, zero_NG = (unpack(part(tensors, kind), ORDER).T.contiguous() for kind in ("qweight", "qzeros"))
        return Int4Weight(q_NK, part(tensors, "scales").T.contiguous(), zero_NG)
