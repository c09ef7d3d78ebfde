# SPDX-License-Identifier: Apache-2.0
"""How large a training will be, from the target's config.json and the recipe alone: parameters, bytes, FLOPs.

Sizes are upper bounds where the data decides: every answer is taken to be as long as `answers.max_tokens` allows.

Shapes: H hidden size, N query heads, G key-value heads, D head size, F the MLP's inner size, V draft vocabulary,
W target vocabulary, A aux layers, S steps of the training-time test, R rows (positions that draft), P processes.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from aerie.draft_models.contract import DraftConfig, tensor_shapes
from aerie.trainer.draft.capture import layer_ids
from aerie.trainer.draft.prepared import head_config
from aerie.trainer.draft.prompts import load_prompts
from aerie.trainer.draft.recipe import DraftRecipe, JsonlPrompts
from aerie.trainer.recipe import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PROMPT_TOKENS: Final = 256
"""Tokens of a prompt, template included, unless told otherwise: the recipe does not know them."""
TOKEN_BYTES: Final = 4 + 1 + 4
"""Of a captured token beside its states: its id, whether it is supervised, the target's choice (capture.py)."""


@dataclass(frozen=True)
class Target:
    """A target's shape and weights, by part; `active` are those one token goes through."""

    shape: dict[str, Any]
    """What `head_config` needs."""
    layers: int
    parts: dict[str, int]
    """Parameters: embed_tokens, attention, mlp (of a mixture: all experts), router, norms, lm_head."""
    active: int
    """Parameters that one token is multiplied with: no embeddings, and of the experts those the router chooses."""
    bits: int
    """Of a weight of the linear layers; 16 when not quantised."""

    @classmethod
    def read(cls, folder: Path) -> "Target":
        """From the folder's config.json. Raises RecipeError."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder).get_text_config()
        except (OSError, ValueError) as error:
            raise RecipeError(f"target: {folder} has no config.json that transformers reads ({error})") from error
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        rope = getattr(config, "rope_parameters", None) or {}
        shape = {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": size,
            "vocab_size": config.vocab_size,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": rope.get("rope_theta") or 10000.0,
            "max_position_embeddings": config.max_position_embeddings,
        }
        parts, active = _weights(config, 2 * (heads + groups) * size, size)
        layers = config.num_hidden_layers
        return cls(shape, layers, parts, active, _bits(getattr(config, "quantization_config", None)))

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(self.parts.values())

    @property
    def weight_bytes(self) -> float:
        """On the devices: linear layers at `bits` (a quantised group of 128 adds a 16-bit scale), the rest at 16."""
        packed = self.parts["attention"] + self.parts["mlp"]
        bits = self.bits + (16 / 128 if self.bits < 16 else 0)
        return (packed * bits + (self.parameters - packed) * 16) / 8

    def flops(self, context: int) -> float:
        """Of one token's forward pass: 2 per active weight, and 4 N D per layer and token it attends to."""
        attended: float = self.layers * self.shape["num_attention_heads"] * self.shape["head_dim"] * context
        return 2 * self.active + 4 * attended


def _weights(config: "PreTrainedConfig", attention_width: int, head_dim: int) -> tuple[dict[str, int], int]:
    """The target's parameters by part, and how many one token is multiplied with."""
    hidden, vocab, layers = config.hidden_size, config.vocab_size, config.num_hidden_layers
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    dense = set(getattr(config, "mlp_only_layers", None) or [])
    every = getattr(config, "decoder_sparse_step", 1)
    sparse = sum((i + 1) % every == 0 and i not in dense for i in range(layers)) if experts else 0
    expert = 3 * hidden * (getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    mlp = 3 * hidden * config.intermediate_size * (layers - sparse)
    attention, router = layers * hidden * attention_width, sparse * experts * hidden
    # Qwen3 normalises queries and keys per head.
    per_head = 2 * head_dim if config.model_type.startswith("qwen3") else 0
    parts = {
        "embed_tokens": vocab * hidden,
        "attention": attention,
        "mlp": mlp + sparse * experts * expert,
        "router": router,
        "norms": layers * (2 * hidden + per_head) + hidden,
        "lm_head": 0 if config.tie_word_embeddings else vocab * hidden,
    }
    chosen = sparse * getattr(config, "num_experts_per_tok", 0) * expert if sparse else 0
    return parts, attention + mlp + chosen + router + vocab * hidden


def _bits(quantization: dict[str, Any] | None) -> int:
    if not quantization:
        return 16
    groups = quantization.get("config_groups")
    if isinstance(groups, dict) and groups:
        return int(next(iter(groups.values()))["weights"]["num_bits"])
    return int(str(quantization.get("bits") or quantization.get("w_bit") or 8))


@dataclass(frozen=True)
class Sizes:
    """What one recipe will take. Bytes are bytes, counts are counts; nothing here depends on a device."""

    recipe: DraftRecipe
    target: Target
    head: DraftConfig
    prompt_tokens: int = PROMPT_TOKENS
    processes: int = 1

    @classmethod
    def of(cls, recipe: DraftRecipe, prompt_tokens: int = PROMPT_TOKENS, processes: int = 1) -> "Sizes":
        """Read the target's config.json and derive the head's shape as `aerie train draft` will."""
        target = Target.read(recipe.target)
        ids = layer_ids(recipe.capture.aux_hidden_state_layer_ids, target.layers)
        description = {"target": target.shape, "aux_hidden_state_layer_ids": ids}
        return cls(recipe, target, head_config(recipe.head, description, None), prompt_tokens, processes)

    @cached_property
    def documents(self) -> int:
        """Training chats: those of the file, where it is there. Raises RecipeError when nobody says how many."""
        prompts = self.recipe.prompts
        if isinstance(prompts, JsonlPrompts) and prompts.path.is_file():
            return len(load_prompts(prompts))
        if (count := prompts.count) is None:
            raise RecipeError("prompts.count: give the number of chats, or the plan cannot tell sizes and times")
        return count

    @property
    def document_tokens(self) -> int:
        """A prompt and its answer."""
        return self.prompt_tokens + self.recipe.answers.max_tokens

    @property
    def answer_tokens(self) -> int:
        """Supervised tokens, about as many rows: documents x answers.max_tokens."""
        return self.documents * self.recipe.answers.max_tokens

    @property
    def captured_tokens(self) -> int:
        """Prompts and answers."""
        return self.answer_tokens + self.documents * self.prompt_tokens

    @property
    def state_bytes_per_token(self) -> int:
        """(A + 1) H in bf16, and TOKEN_BYTES: the aux layers and the last residual stream."""
        aux = len(self.head.aux_hidden_state_layer_ids)
        return (aux + 1) * self.head.hidden_size * 2 + TOKEN_BYTES

    @property
    def trainable(self) -> int:
        """All parameters but a frozen lm_head; with LoRA rank x (inputs + outputs) of every other projection."""
        training, shapes = self.recipe.training, tensor_shapes(self.head)
        if training.lora is not None:
            wide = [shape for name, shape in shapes.items() if len(shape) == 2 and name != "lm_head.weight"]
            return sum(training.lora.rank * sum(shape) for shape in wide)
        parts = head_parts(self.head)
        return sum(parts.values()) - (0 if training.train_lm_head else parts["lm_head"])

    def memory(self) -> dict[str, float]:
        """Bytes of one process while training.

        weights: float32 masters, 4 a parameter; gradients 4, AdamW 8 a trainable one; a P-th of each when sharded.
        gathered: with FSDP2 the weights and gradients of the whole head exist while a step uses them, 8 a parameter.
        teacher: the target's embeddings and lm_head, float32, 8 W H (4 W H when tied), on every process.
        activations: see `activation_bytes`.
        """
        whole, sharded = sum(head_parts(self.head).values()), self.recipe.training.sharding == "full"
        share = self.processes if sharded else 1
        ends = 1 if self.target.parts["lm_head"] == 0 else 2
        return {
            "weights": 4 * whole / share,
            "gradients": 4 * self.trainable / share,
            "optimizer": 8 * self.trainable / share,
            "gathered": 8.0 * whole if sharded else 0.0,
            "teacher": 4.0 * ends * self.head.vocab_size * self.head.hidden_size,
            "activations": self.activation_bytes(),
        }

    def activation_bytes(self) -> float:
        """What a batch adds: `saved_bytes`, and 12 R V for p, z and its gradient over the draft vocabulary."""
        training = self.recipe.training
        saved = saved_bytes(self.head, training.batch_rows, training.steps, self.document_tokens, training.precision)
        return saved + 12 * training.batch_rows * self.head.draft_vocab_size

    def row_flops(self) -> dict[str, float]:
        """FLOPs of one supervised position, forward and backward: 2 and 4 a weight, S times what each step repeats.

        once: fc 2 A H H; keys and values of step 0, and the embedding's share of all projections.
        steps: the hidden state's share of the projections, o_proj, SwiGLU, lm_head; attention to half the document
        and to the s keys of its own row, 4 N D each.
        teacher: the target's logits over the draft vocabulary, 2 H V, forward only.
        """
        head, steps = self.head, self.recipe.training.steps
        hidden, inner = head.hidden_size, head.num_attention_heads * head.head_dim
        projected = inner + 2 * head.num_key_value_heads * head.head_dim + head.gate_size
        keys = 2 * 2 * hidden * 2 * head.num_key_value_heads * head.head_dim
        fused = 2 * len(head.aux_hidden_state_layer_ids) * head.target_hidden_size * hidden
        length = self.document_tokens
        step = 2 * hidden * (projected + inner + 3 * head.intermediate_size + head.draft_vocab_size)
        attention = 4 * inner * (length / 2 * steps + steps * (steps - 1) / 2)
        return {
            "once": 3.0 * (fused + keys + 2 * hidden * projected),
            "steps": 3.0 * (steps * step + attention),
            "teacher": 2.0 * hidden * head.draft_vocab_size,
        }

    @property
    def epochs(self) -> int:
        """Passes over the data, the on-policy stage's included."""
        stage = self.recipe.training.on_policy
        return self.recipe.training.epochs + (stage.epochs if stage is not None else 0)

    @property
    def training_flops(self) -> float:
        """Of all epochs."""
        return self.epochs * self.answer_tokens * sum(self.row_flops().values())

    @property
    def capture_flops(self) -> float:
        """One forward pass of the target over every token, attending to half a document on average."""
        return self.captured_tokens * self.target.flops(self.document_tokens // 2)

    @property
    def state_bytes(self) -> int:
        """Of the whole training data, were it all kept."""
        return self.captured_tokens * self.state_bytes_per_token

    @property
    def passes(self) -> int:
        """Of the target over the data: 1 when the disk budget holds all states, else one for every epoch."""
        budget = self.recipe.capture.disk_budget_gib
        return 1 if budget is None or self.state_bytes <= budget * 2**30 else self.epochs


def saved_bytes(
    head: DraftConfig, rows: int, steps: int, length: int, precision: Literal["float32", "bfloat16"]
) -> float:
    """What S steps over R rows of documents of L tokens keep for the backward pass.

    Per row and step 9 H (norms, residuals, what the projections read), 4 F (SwiGLU), 3 N D (queries, the attention's
    output, what o_proj reads) and g gates. Step s attends to s diagonal keys and values of all heads: in all
    S (S - 1) N D. The causal bias, once: N / G R L. The gradient of the output rows, one for each step: V H.
    An element takes 4 bytes. Under bfloat16's autocast SwiGLU, gates, output rows and about half of what projections
    read take 2, and the head's weights have a copy of 2 bytes. The projections of a row are joined, W = (N + 2 G) D + g
    rows in all: 12 W H, or under autocast, which keeps no copy of what is no parameter, 2 W H in every step.
    """
    half = precision == "bfloat16"
    hidden, inner = head.hidden_size, head.num_attention_heads * head.head_dim
    row = (30 if half else 36) * hidden + (8 if half else 16) * head.intermediate_size
    row += (10 if half else 12) * inner + (2 if half else 4) * head.gate_size
    diagonal = 4 * steps * (steps - 1) * inner
    bias = 4 * head.num_attention_heads // head.num_key_value_heads * length
    output = (2 if half else 4) * steps * head.draft_vocab_size * hidden
    joined = (inner + 2 * head.num_key_value_heads * head.head_dim + head.gate_size) * hidden
    copies = 2 * sum(head_parts(head).values()) + 2 * (steps + 1) * joined if half else 12 * joined
    return rows * (steps * row + diagonal + bias) + output + copies


def head_parts(head: DraftConfig) -> dict[str, int]:
    """Parameters of a head by part; d2t and t2d, which are no parameters, are left out."""
    parts = dict.fromkeys(("fc", "attention", "gate", "mlp", "norms", "lm_head"), 0)
    for name, shape in tensor_shapes(head).items():
        if name not in ("d2t", "t2d"):
            parts[_part(name)] += math.prod(shape)
    return parts


def _part(name: str) -> str:
    if name.endswith("norm.weight") or name.startswith("fc_norm"):
        return "norms"
    for piece, part in (("g_proj", "gate"), ("self_attn", "attention"), ("mlp", "mlp"), ("fc", "fc")):
        if piece in name.split("."):
            return part
    return "lm_head"
