# SPDX-License-Identifier: Apache-2.0
"""What a main model's training run is made of: one frozen schema, read from YAML."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from aerie.trainer.recipe import Schema


class ModelShape(Schema):
    """A dense Qwen3, deep and thin so that target and draft cost relate as in a real model."""

    vocab_size: int = Field(4096, ge=300)
    hidden_size: int = Field(256, gt=0)
    intermediate_size: int = Field(512, gt=0)
    layers: int = Field(24, gt=0)
    attention_heads: int = Field(4, gt=0)
    key_value_heads: int = Field(2, gt=0)
    head_dim: int = Field(64, gt=0)
    max_position_embeddings: int = Field(2048, gt=0)
    rope_theta: float = 10_000.0


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
    save_steps: int = Field(250, gt=0)


class MainRecipe(Schema):
    """A main model from nothing: corpus, tokenizer, model, optimisation."""

    output: Path
    seed: int = 0
    shape: ModelShape = ModelShape()
    corpus: Corpus
    optimisation: Optimisation
