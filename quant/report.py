# SPDX-License-Identifier: Apache-2.0
"""What quantising did to a model: sizes, the error of each layer, quality. Written as quant_report.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from aerie.quant.quality import Quality
from aerie.quant.recipe import QuantRecipe
from aerie.quant.weight import Int4Weight, chunk_rows


class LayerReport(BaseModel):
    """One linear layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, int] = Field(description="[outputs, inputs]")
    relative_error: float = Field(description="Frobenius norm of (dequantised - original) over that of the original")
    largest_error: float = Field(description="Largest absolute difference of a weight")
    stored_bytes: int = Field(description="Integers, scales and zero points")


class DecoderReport(BaseModel):
    """One decoder layer, where text was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output_errors: dict[str, float] = Field(
        description="By text: norm of what its outputs differ by from the unquantised model's, over the norm of those"
    )
    tokens_by_expert: tuple[int, ...] = Field(description="Calibration tokens that the router sent to each expert")
    fallbacks: tuple[str, ...] = Field(
        description="Linear layers of experts with too few tokens: rounded without regard to inputs"
    )


class DraftAcceptance(BaseModel):
    """What a draft makes of both models, in the engine, on the same prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    draft: str = Field(description="Name of its folder")
    draft_tokens: int = Field(description="Tokens drafted in a step")
    temperature: float
    prompts: int
    before: float = Field(description="Mean acceptance length on the unquantised model: 1 + accepted / steps")
    after: float = Field(description="On the quantised one")


class QuantReport(BaseModel):
    """The whole model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: QuantRecipe
    bytes_before: int = Field(description="Weight files of the source")
    bytes_after: int = Field(description="Weight files written")
    resident_bytes: dict[str, int] = Field(
        description="Parameters in memory when served on a CPU, by the engine's dtype; before any KV cache"
    )
    parameters: int = Field(description="Stored parameters; tied ones once")
    quantised_parameters: int
    bits_per_quantised_weight: float = Field(description="Scales included")
    relative_error: float = Field(description="Over all quantised layers together")
    layers: tuple[LayerReport, ...]
    decoder: tuple[DecoderReport, ...] = Field(description="By decoder layer; empty without text")
    quality: Quality | None = Field(description="On held-out text; None without it")
    acceptance: DraftAcceptance | None = Field(default=None, description="Of the draft that the recipe names")
    provenance: dict[str, object]

    @property
    def ratio(self) -> float:
        """Size after over size before."""
        return self.bytes_after / self.bytes_before


def account(original_NK: torch.Tensor, weight: Int4Weight) -> dict[str, Any]:
    """What is remembered of a linear layer until the report is written, as JSON."""
    squared_error = squared_norm = largest = 0.0
    rows = chunk_rows(original_NK)
    for chunk_NK, part in zip(original_NK.split(rows), weight.split(rows), strict=True):
        difference_NK = part.dequantise() - chunk_NK.float()
        squared_error += float(difference_NK.square().sum())
        squared_norm += float(chunk_NK.float().square().sum())
        largest = max(largest, float(difference_NK.abs().max()))
    return {
        "shape": list(original_NK.shape),
        "squared_error": squared_error,
        "squared_norm": squared_norm,
        "largest_error": largest,
        "scales": weight.scale_NG.numel(),
    }


def stored_as(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """More of it: its name and what a format makes of it."""
    # A shape, which one format stores in 64 bits, is no weight.
    return {"name": name, "stored_bytes": sum(one.nbytes for one in tensors.values() if one.dtype != torch.int64)}


def summarise(
    recipe: QuantRecipe,
    parts: Sequence[Mapping[str, Any]],
    *,
    before: int,
    written: int,
    parameters: int,
    quality: Quality | None,
    record: dict[str, object],
) -> QuantReport:
    """The report of all parts; `before` and `written` are bytes of weight files."""
    layers = [layer for part in parts for layer in part["layers"]]
    quantised = sum(layer["shape"][0] * layer["shape"][1] for layer in layers)
    scales = sum(layer["scales"] for layer in layers)
    # Half a byte a weight, scale and offset in 16 bit each, the rest in the engine's dtype.
    resident = {
        dtype: quantised // 2 + 4 * scales + element * (parameters - quantised)
        for dtype, element in (("float32", 4), ("bfloat16", 2))
    }
    return QuantReport(
        recipe=recipe,
        bytes_before=before,
        bytes_after=written,
        resident_bytes=resident,
        parameters=parameters,
        quantised_parameters=quantised,
        bits_per_quantised_weight=8 * sum(layer["stored_bytes"] for layer in layers) / quantised,
        relative_error=_relative(
            sum(layer["squared_error"] for layer in layers), sum(layer["squared_norm"] for layer in layers)
        ),
        layers=tuple(
            LayerReport(
                name=layer["name"],
                shape=layer["shape"],
                relative_error=_relative(layer["squared_error"], layer["squared_norm"]),
                largest_error=layer["largest_error"],
                stored_bytes=layer["stored_bytes"],
            )
            for layer in layers
        ),
        decoder=tuple(
            DecoderReport(**{name: part[name] for name in DecoderReport.model_fields})
            for part in parts
            if "output_errors" in part
        ),
        quality=quality,
        provenance=record,
    )


def _relative(squared_error: float, squared_norm: float) -> float:
    return (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0
