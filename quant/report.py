# SPDX-License-Identifier: Apache-2.0
"""What quantising did to a model: sizes, and the error of each layer. Written as quant_report.json."""

from pydantic import BaseModel, ConfigDict, Field

from aerie.quant.recipe import QuantRecipe


class LayerReport(BaseModel):
    """One linear layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, int] = Field(description="[outputs, inputs]")
    relative_error: float = Field(description="Frobenius norm of (dequantised - original) over that of the original")
    largest_error: float = Field(description="Largest absolute difference of a weight")


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
    provenance: dict[str, object]

    @property
    def ratio(self) -> float:
        """Size after over size before."""
        return self.bytes_after / self.bytes_before
