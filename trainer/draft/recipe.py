# SPDX-License-Identifier: Apache-2.0
"""What a draft head is trained on and how: one frozen schema, read from YAML."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aerie.draft_models.contract import GateKind
from aerie.trainer.recipe import Schema


class ClinicPrompts(Schema):
    """Consultations of the embedded clinic, each ending with the patient's turn."""

    source: Literal["clinic"] = "clinic"
    split: Literal["train", "validation", "held_out"] = "train"
    count: int = Field(default=1000, gt=0)
    seed: int = 0


class JsonlPrompts(Schema):
    """A JSONL file of chats: {"messages": [{"role": ..., "content": ...}, ...]} a line, ending with a user turn."""

    source: Literal["jsonl"] = "jsonl"
    path: Path
    count: int | None = Field(default=None, gt=0)
    """Only the first `count` chats; None for all."""


Prompts = Annotated[ClinicPrompts | JsonlPrompts, Field(discriminator="source")]


class Answers(Schema):
    """How the target answers the prompts."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """vLLM with the kernels that serve; transformers in process for tiny targets."""
    temperature: float = Field(default=0.0, ge=0)
    """For training answers. Validation answers are always greedy, as the simulated acceptance length needs."""
    max_tokens: int = Field(default=256, gt=0)
    seed: int = 0


class Capture(Schema):
    """Which hidden states of the target are stored."""

    aux_hidden_state_layer_ids: tuple[int, ...] | None = None
    """Id L is the residual stream after L layers; None for Eagle-3's (2, n / 2, n - 3)."""
    batch_tokens: int = Field(default=4096, gt=0)
    shard_tokens: int = Field(default=65536, gt=0)


class Head(Schema):
    """The head's shape; what is not given follows the target."""

    gate: GateKind = "elementwise"
    draft_vocab_size: int | None = Field(default=2048, gt=0)
    """The most frequent tokens of the answers; None for the target's whole vocabulary."""
    intermediate_size: int | None = Field(default=None, gt=0)
    num_attention_heads: int | None = Field(default=None, gt=0)
    num_key_value_heads: int | None = Field(default=None, gt=0)
    norm_before_residual: bool = False
    fc_norm: bool = False
    norm_output: bool = False


class Training(Schema):
    """The optimisation."""

    seed: int = 0
    epochs: int = Field(default=8, gt=0)
    steps: int = Field(default=5, ge=1, le=16)
    """Steps of the training-time test: as many as tokens are drafted when served, or more."""
    step_decay: float = Field(default=0.8, gt=0, le=1)
    """Step i weighs step_decay ** i in the loss."""
    batch_rows: int = Field(default=768, gt=0)
    """Supervised positions in a batch; a longer document is a batch of its own."""
    learning_rate: float = Field(default=2e-3, gt=0)
    gate_learning_rate: float = Field(default=1.0, gt=0)
    """Multiplies the learning rate for the gate's projection."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the updates with a rising learning rate; a cosine to zero follows."""
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 autocasts matrix products; worth it only where the machine has native ones."""
    threads: int | None = Field(default=None, gt=0)
    """PyTorch threads; bit-exact repetition needs the same number."""
    checkpoint_every: int = Field(default=200, gt=0)
    """Updates between checkpoints."""


class DraftRecipe(Schema):
    """`aerie train draft --recipe FILE`."""

    target: Path
    """The main model as it is served: a Hugging Face folder, INT4 (compressed-tensors) or 16-bit."""
    output: Path
    weights: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the exported weights."""
    work: Path
    """Where answers and captured states are kept; trainings that ask for the same data share them."""
    prompts: Prompts = ClinicPrompts()
    validation: Prompts = ClinicPrompts(split="validation", count=100)
    answers: Answers = Answers()
    capture: Capture = Capture()
    head: Head = Head()
    training: Training = Training()
