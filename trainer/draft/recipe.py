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
    """Patients and diseases of the three never mix."""
    count: int = Field(default=1000, gt=0)
    """Consultations."""
    seed: int = 0
    """Another one draws other consultations."""


class JsonlPrompts(Schema):
    """A file of chats, one JSON object a line or one JSON list.

    A chat is {"messages": [{"role": ..., "content": ...}, ...]}, ShareGPT's {"conversations": [{"from": ...,
    "value": ...}, ...]}, or {"prompt": ...}. Answers at the end of a chat are left to the target.
    """

    source: Literal["jsonl"] = "jsonl"
    path: Path
    """The file."""
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
    """Of an answer."""
    seed: int = 0
    """Of the sampling."""
    turns: Literal["last", "all"] = "last"
    """Of a chat of several turns: answer the last one, earlier answers as given; or all, each on top of the last."""
    part: int = Field(default=512, gt=0)
    """Prompts answered between two saves: what a killed run has to do again at most."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """Devices that vLLM spreads the target over."""


class Capture(Schema):
    """Which hidden states of the target are stored, and who computes them."""

    engine: Literal["vllm", "transformers"] = "transformers"
    """vLLM with the kernels that serve, for targets of any size; transformers in process for tiny ones."""
    disk_budget_gib: float | None = Field(default=None, gt=0)
    """Most that the captured states of the training prompts may take on disk. When they take more, they are captured
    anew each epoch, in chunks of half the budget, while the last chunk is trained on. Shards that an engine is writing
    come on top. None: no limit."""
    aux_hidden_state_layer_ids: tuple[int, ...] | None = None
    """Id L is the residual stream after L layers; None for Eagle-3's (2, n / 2, n - 3)."""
    batch_tokens: int = Field(default=4096, gt=0)
    """Tokens, padding included, that the target reads at once."""
    shard_tokens: int = Field(default=65536, gt=0)
    """Tokens of a shard: what a killed run has to capture again at most."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """Devices that vLLM spreads the target over."""


class Head(Schema):
    """The head's shape; what is not given follows the target."""

    gate: GateKind = "elementwise"
    """A gate value for each attention channel, for each head, or no gate: a plain EAGLE-3 head."""
    draft_vocab_size: int | None = Field(default=2048, gt=0)
    """The most frequent tokens of the answers; None for the target's whole vocabulary."""
    intermediate_size: int | None = Field(default=None, gt=0)
    """Inner size of the MLP; None for the target's."""
    num_attention_heads: int | None = Field(default=None, gt=0)
    """Query heads; None for the target's."""
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """None for the target's."""
    attention: Literal["llama", "qwen3"] = "llama"
    """qwen3 normalises queries and keys per head."""
    norm_before_residual: bool = False
    """The residual branch takes the normed hidden state."""
    fc_norm: bool = False
    """EAGLE-3.1: an RMSNorm on each aux state before they are fused."""
    norm_output: bool = False
    """EAGLE-3.1: the next step receives the normed output."""
    start: Path | None = None
    """A trained head to start from: all tensors that both have are taken over; a new gate starts neutral."""


class LowRank(Schema):
    """LoRA (arXiv 2106.09685): the head's projections move by alpha / rank * B A, merged before the export."""

    rank: int = Field(default=16, gt=0)
    """Inner size of B A."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the move, over the rank."""


class OnPolicy(Schema):
    """A stage after the supervised one: only the states that the engine's walk with this head would visit count."""

    epochs: int = Field(default=2, gt=0)
    """On top of `training.epochs`."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Its peak in this stage."""


class Served(Schema):
    """Acceptance in vLLM while training: the head is exported and measured in a second process."""

    every: int | None = Field(default=None, gt=0)
    """Updates between measurements; None for the end of the training only."""
    prompts: "Prompts" = ClinicPrompts(split="held_out", count=64)
    """What is asked; none of it may be in training."""
    draft_tokens: int = Field(default=4, gt=0)
    """Tokens drafted in a step."""
    temperature: float = Field(default=0.0, ge=0)
    """0 for greedy answers."""
    max_tokens: int = Field(default=256, gt=0)
    """Of an answer."""
    seed: int = 0
    """Of the sampling."""


class Training(Schema):
    """The optimisation."""

    seed: int = 0
    """Of the first weights and of the order of the data."""
    epochs: int = Field(default=8, gt=0)
    """Supervised passes over the data."""
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
    """Adapt the head of `head.start` by low-rank moves only; None trains all weights."""
    on_policy: OnPolicy | None = None
    """A second stage; None for none."""
    batch_rows: int = Field(default=768, gt=0)
    """Supervised positions in a batch; a longer document is a batch of its own."""
    accumulate: int = Field(default=1, gt=0)
    """Batches of one update, on all processes together."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Its peak."""
    gate_learning_rate: float = Field(default=1.0, gt=0)
    """Multiplies the learning rate for the gate's projection."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the updates with a rising learning rate; a cosine to zero follows."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of matrices; norms are not decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
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
    """The head's folder; written whole or not at all. One that holds anything but this recipe's earlier result is
    refused."""
    weights: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the exported weights."""
    work: Path
    """Where answers and captured states are kept; trainings that ask for the same data share them."""
    prompts: Prompts = ClinicPrompts()
    """What the head learns on."""
    validation: Prompts = ClinicPrompts(split="validation", count=100)
    """What simulated acceptance is measured on; conversations of both are left out of training."""
    answers: Answers = Answers()
    """How the target answers."""
    capture: Capture = Capture()
    """What is stored of the target."""
    head: Head = Head()
    """The head's shape."""
    training: Training = Training()
    """The optimisation."""
    served: Served | None = None
    """Acceptance in the real engine; None not to measure it."""
