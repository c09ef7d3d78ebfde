# SPDX-License-Identifier: Apache-2.0
"""What a main model's training run is made of: one frozen schema, read from YAML."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from aerie.trainer.recipe import Schema


class ModelShape(Schema):
    """A Qwen3, by default dense, deep and thin so that target and draft cost relate as in a real model.

    With `experts` every layer's MLP is a mixture of experts, as in Qwen3-MoE: the router's chosen probabilities are
    normalised to 1, no expert is shared.
    """

    vocab_size: int = Field(4096, ge=300)
    hidden_size: int = Field(256, gt=0)
    intermediate_size: int = Field(512, gt=0)
    experts: int | None = Field(None, gt=1)
    experts_per_token: int | None = Field(None, gt=0)
    moe_intermediate_size: int | None = Field(None, gt=0)
    layers: int = Field(24, gt=0)
    attention_heads: int = Field(4, gt=0)
    key_value_heads: int = Field(2, gt=0)
    head_dim: int = Field(64, gt=0)
    max_position_embeddings: int = Field(2048, gt=0)
    rope_theta: float = 10_000.0

    @model_validator(mode="after")
    def _experts_are_described(self) -> Self:
        described = (self.experts_per_token, self.moe_intermediate_size)
        if self.experts is None:
            if described != (None, None):
                raise ValueError("experts_per_token and moe_intermediate_size are for a sparse model; set experts too")
        elif None in described:
            raise ValueError("experts needs experts_per_token and moe_intermediate_size; set both")
        elif self.experts_per_token is not None and self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token: at most the {self.experts} experts there are")
        return self


class Corpus(Schema):
    """How many of the clinic's dialogues to train and validate on."""

    documents: int = Field(gt=0)
    validation_documents: int = Field(gt=0)
    seed: int = 0


class Optimisation(Schema):
    """AdamW with a cosine schedule. Batches hold documents of similar length."""

    documents_per_step: int = Field(gt=0)
    epochs: float = Field(1.0, gt=0)
    learning_rate: float = Field(gt=0)
    warmup_share: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    beta2: float = Field(0.95, gt=0, lt=1)
    gradient_clip: float = Field(1.0, gt=0)
    # `auto` is bfloat16 autocast where the processor computes it natively, float32 elsewhere (emulation is slower).
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    # Fuses each layer's elementwise work, about half of a small model's step; needs a C++ compiler on CPUs.
    compile: bool = False
    # Weight of the loss that keeps a router from starving experts; a dense model has none. Starved experts would be
    # calibrated on nothing later.
    router_loss: float = Field(0.01, ge=0)
    save_steps: int = Field(250, gt=0)


class MainRecipe(Schema):
    """A main model from nothing: corpus, tokenizer, model, optimisation."""

    output: Path
    seed: int = 0
    shape: ModelShape = ModelShape()
    corpus: Corpus
    optimisation: Optimisation

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.optimisation.compile and self.shape.experts is not None:
            # Inductor cannot see how many tokens an expert gets, and falls back layer by layer, loudly.
            raise ValueError("optimisation.compile: a model with experts cannot be compiled; set it to false")
        return self
