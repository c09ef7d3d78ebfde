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
    turns: Literal["last", "all"] = "last"
    """Of a chat of several turns: answer the last one, earlier answers as given; or all, each on top of the last."""
    part: int = Field(default=512, gt=0)
    """Prompts answered between two saves: what a killed run has to do again at most."""


class Capture(Schema):
    """Which hidden states of the target are stored, and who computes them."""

    engine: Literal["vllm", "transformers"] = "transformers"
    """vLLM with the kernels that serve, for targets of any size; transformers in process for tiny ones."""
    disk_budget_gib: float | None = Field(default=None, gt=0)
    """Most that captured states may take on disk; what does not fit is captured anew each epoch. None: no limit."""
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
    attention: Literal["llama", "qwen3"] = "llama"
    """qwen3 normalises queries and keys per head."""
    norm_before_residual: bool = False
    fc_norm: bool = False
    """EAGLE-3.1: an RMSNorm on each aux state before they are fused."""
    norm_output: bool = False
    """EAGLE-3.1: the next step receives the normed output."""
    start: Path | None = None
    """A trained head to start from: all tensors that both have are taken over; a new gate starts neutral."""


class LowRank(Schema):
    """LoRA (arXiv 2106.09685): the head's projections move by alpha / rank * B A, merged before the export."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0)


class OnPolicy(Schema):
    """A stage after the supervised one: only the states that the engine's walk with this head would visit count."""

    epochs: int = Field(default=2, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0)


class Served(Schema):
    """Acceptance in vLLM while training: the head is exported and measured in a second process."""

    every: int | None = Field(default=None, gt=0)
    """Updates between measurements; None for the end of the training only."""
    prompts: "Prompts" = ClinicPrompts(split="held_out", count=64)
    draft_tokens: int = Field(default=4, gt=0)
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=256, gt=0)
    seed: int = 0


class Training(Schema):
    """The optimisation."""

    seed: int = 0
    epochs: int = Field(default=8, gt=0)
    steps: int = Field(default=5, ge=1, le=16)
    """Steps of the training-time test: as many as tokens are drafted when served, or more."""
    step_decay: float = Field(default=0.8, gt=0, le=1)
    """Step i weighs step_decay ** i in the loss."""
    loss: Literal["ce", "tv", "lk", "lk_hybrid"] = "ce"
    """What pulls the head's distribution q to the target's p, over the draft vocabulary: soft cross-entropy (the
    gradient of KL), total variation, -log of the acceptance sum min(p, q), or the LK paper's mixture of KL and TV."""
    train_lm_head: bool = True
    """False keeps the head's output rows as they start."""
    lora: LowRank | None = None
    on_policy: OnPolicy | None = None
    batch_rows: int = Field(default=768, gt=0)
    """Supervised positions in a batch; a longer document is a batch of its own."""
    accumulate: int = Field(default=1, gt=0)
    """Batches of one update, on all processes together."""
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
    sharding: Literal["none", "full"] = "none"
    """Across processes: every one holds the whole head (DDP), or a share of it (FSDP2)."""
    compile: bool = False
    """torch.compile the head's steps; for GPUs."""
    patience: int | None = Field(default=None, gt=0)
    """Stop after this many epochs without a better simulated acceptance length."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's head is exported: the one with the longest simulated acceptance, or the last."""
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
    served: Served | None = None
