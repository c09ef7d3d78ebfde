# SPDX-License-Identifier: Apache-2.0
"""The one schema of `aerie quantize`: what is quantised, and how."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from aerie.quant.recipe_file import read_recipe


class QuantRecipe(BaseModel):
    """Weight-only INT4. The defaults are what the demo ships with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["rtn", "awq", "autoround"] = Field(
        default="rtn",
        description="How integers are chosen: rtn rounds each weight to nearest; awq scales up the inputs that matter "
        "first; autoround learns which way each weight is rounded. The last two look at text.",
    )
    format: Literal["compressed-tensors", "gptq", "awq"] = Field(
        default="compressed-tensors",
        description="How the weights lie on disk; vLLM serves all three, on CPUs through the plugin.",
    )
    bits: Literal[4] = Field(default=4, description="Bits a weight.")
    group_size: Literal[32, 64, 128, "channel"] = Field(
        default=64, description="Consecutive inputs that share one scale; `channel`: all inputs of an output."
    )
    symmetric: bool = Field(default=True, description="Scales without zero points; false: each group has its own.")
    clip: Literal["absmax", "mse"] = Field(
        default="mse",
        description="Scale of a group: from its largest magnitude, or the one with the least squared error.",
    )
    ignore: tuple[str, ...] = Field(
        default=("lm_head", r"re:.*mlp\.gate$"),
        description="Linear layers left in 16 bit: full names, or regular expressions after `re:`.",
    )

    max_tokens: int = Field(default=512, gt=1, description="Of a document of text: what is beyond is left out.")
    min_expert_tokens: int = Field(
        default=64,
        ge=0,
        description="Experts that fewer calibration tokens reach are rounded without regard to inputs.",
    )
    iterations: int = Field(default=200, gt=0, description="autoround: updates of a decoder layer's rounding.")
    batch_documents: int = Field(default=8, gt=0, description="autoround: documents of an update.")

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read and validate a recipe file; an empty file is the default recipe.

        Raises:
            QuantError: the file is missing, is not YAML, or holds an unknown or unsupported option.
        """
        return read_recipe(cls, path)
