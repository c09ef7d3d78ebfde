# SPDX-License-Identifier: Apache-2.0
"""The contract of an Eagle-3 draft checkpoint: its configuration keys, its tensors' names and shapes.

Training, export, serving and the checks before serving all read it from here.

The head (Eagle-3, arXiv 2503.01840; gate: arXiv 2602.06570 §5.1, G1 of arXiv 2505.06708), per token, hidden size H:

    hidden = fc(concat(aux hidden states of the target))              first step; later the head's own output
    x      = concat(input_layernorm(embed), hidden_norm(hidden))      [2H]
    o      = GQA(x Wq, x Wk, x Wv)                                    [heads * head_dim]; Qwen3's attention (`qk_norm`)
             normalises each head of x Wq and x Wk, RMSNorm over head_dim, before the rotary embedding
    y      = (o * sigmoid(x Wg)) Wo                                   the gate; absent for gate "none"
    h      = residual + y;  out = h + mlp(post_attention_layernorm(h))
    logits = norm(out) lm_head;  `out` (normed if `norm_output`) is the next step's hidden

with residual = hidden, or hidden_norm(hidden) if `norm_before_residual`.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

GateKind = Literal["elementwise", "headwise", "none"]
"""One gate value per attention channel, one per query head, or no gate: a plain Eagle-3 head."""

GATED_ARCHITECTURE: Final = "Eagle3GatedLlamaForCausalLM"
GATED_QWEN3_ARCHITECTURE: Final = "Eagle3GatedQwen3ForCausalLM"
GATED_ARCHITECTURES: Final = (GATED_ARCHITECTURE, GATED_QWEN3_ARCHITECTURE)
"""Names under which our plugin registers a gated head; vLLM keeps only names that begin or end with "Eagle3"."""
PLAIN_ARCHITECTURE: Final = "LlamaForCausalLMEagle3"
PLAIN_QWEN3_ARCHITECTURE: Final = "Eagle3Qwen3ForCausalLM"
PLAIN_ARCHITECTURES: Final = (PLAIN_ARCHITECTURE, "Eagle3LlamaForCausalLM", PLAIN_QWEN3_ARCHITECTURE)
"""Names under which unmodified vLLM knows a plain head."""

# The architecture alone says which attention a head has, for vLLM and for us: no key of ours could contradict it.
_QK_NORM: Final = (GATED_QWEN3_ARCHITECTURE, PLAIN_QWEN3_ARCHITECTURE)

# What would change the formula above; a configuration that asks for another value is refused, never half obeyed.
_FIXED: Final[Mapping[str, object]] = {
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "norm_before_fc": False,
    "parallel_drafting": False,
    "logit_scale": 1.0,
    "rope_scaling": None,
    "use_sliding_window": False,
}


class ContractError(ValueError):
    """A draft's configuration is not one this contract describes."""


class DraftMismatch(ContractError):  # noqa: N818 -- states the fact, as vLLM and the server report it
    """A draft and its target do not fit, or the draft's files contradict its configuration."""


class TargetIdentity(BaseModel):
    """Which main model a draft was trained for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    config_sha256: str
    """SHA-256 of the target's config.json."""
    weights_sha256: dict[str, str]
    """SHA-256 of every safetensors file, by file name."""
    quantisation: str | None
    """`quantization_config.quant_method` of the target; None for a 16-bit one."""


class DraftConfig(BaseModel):
    """The typed view of a draft's config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    """The target's vocabulary."""
    draft_vocab_size: int = Field(gt=0)
    """Rows of the draft's lm_head; equal to `vocab_size` when every token can be drafted."""
    target_hidden_size: int = Field(gt=0)
    aux_hidden_state_layer_ids: tuple[int, ...] = Field(min_length=1)
    """Id L is the target's residual stream after L layers (0: its embeddings); ascending, as vLLM sorts them."""
    gate: GateKind
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    qk_norm: bool = False
    """Qwen3's attention, with an RMSNorm per head on queries and keys; else Llama's."""
    norm_before_residual: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    hidden_act: Literal["silu"] = "silu"
    target: TargetIdentity | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = self.aux_hidden_state_layer_ids
        if ids[0] < 0 or any(low >= high for low, high in pairwise(ids)):
            raise ValueError(f"aux_hidden_state_layer_ids {list(ids)} must be 0 or more, distinct, ascending")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.draft_vocab_size > self.vocab_size:
            raise ValueError("draft_vocab_size must not exceed vocab_size")
        if self.hidden_size != self.target_hidden_size:
            raise ValueError("hidden_size must equal target_hidden_size: the head uses the target's token embeddings")
        return self

    @property
    def maps_vocabulary(self) -> bool:
        """Whether draft ids differ from target ids, so that the checkpoint has d2t and t2d."""
        return self.draft_vocab_size != self.vocab_size

    @property
    def gate_size(self) -> int:
        """Outputs of the gate projection; 0 without a gate."""
        per_head = {"elementwise": self.head_dim, "headwise": 1, "none": 0}[self.gate]
        return self.num_attention_heads * per_head

    @property
    def architecture(self) -> str:
        """The name by which vLLM finds the head's class."""
        llama, qwen3 = (PLAIN_ARCHITECTURE, PLAIN_QWEN3_ARCHITECTURE) if self.gate == "none" else GATED_ARCHITECTURES
        return qwen3 if self.qk_norm else llama

    def to_hf(self) -> dict[str, Any]:
        """The flat Hugging Face config.json that vLLM, and transformers' LlamaConfig or Qwen3Config, read."""
        same = self.model_dump(mode="json", exclude={"aux_hidden_state_layer_ids", "gate", "qk_norm", "target"})
        config = {
            "architectures": [self.architecture],
            "model_type": "qwen3" if self.qk_norm else "llama",
            "num_hidden_layers": 1,
            **same,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            # vLLM takes the ids at top level but counts them only through this key.
            "eagle_aux_hidden_state_layer_ids": list(self.aux_hidden_state_layer_ids),
            "num_aux_hidden_states": len(self.aux_hidden_state_layer_ids),
        }
        if self.gate != "none":
            config |= {"attn_output_gate": True, "gate_activation": "sigmoid", "gate_granularity": self.gate}
        if self.target is not None:
            config["target_identity"] = self.target.model_dump(mode="json")
        return config

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read a config.json; raises ContractError when it is not of this contract."""
        _refuse_unsupported(config)
        copied = set(cls.model_fields) - {"aux_hidden_state_layer_ids", "gate", "qk_norm", "target", "rope_theta"}
        values = {name: config[name] for name in copied if name in config}
        if (ids := config.get("eagle_aux_hidden_state_layer_ids")) is not None:
            values["aux_hidden_state_layer_ids"] = tuple(ids)
        if (theta := (config.get("rope_parameters") or config).get("rope_theta")) is not None:
            values["rope_theta"] = theta
        values |= {"gate": _gate(config), "target": config.get("target_identity")}
        values["qk_norm"] = config["architectures"][0] in _QK_NORM
        values.setdefault("draft_vocab_size", config.get("vocab_size"))
        values.setdefault("target_hidden_size", config.get("hidden_size"))
        try:
            read = cls.model_validate(values)
        except ValidationError as error:
            faults = (f"{'.'.join(map(_key, fault['loc']))} {fault['msg']}".strip() for fault in error.errors())
            raise ContractError(f"draft config.json: {'; '.join(faults)}") from error
        counted = config.get("num_aux_hidden_states")
        if counted != len(read.aux_hidden_state_layer_ids):
            raise ContractError(
                f"draft config.json: num_aux_hidden_states is {counted}, "
                f"but eagle_aux_hidden_state_layer_ids has {len(read.aux_hidden_state_layer_ids)}"
            )
        return read


def _key(field: object) -> str:
    """How config.json calls a field of ours."""
    return "eagle_aux_hidden_state_layer_ids" if field == "aux_hidden_state_layer_ids" else str(field)


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    for key, only in _FIXED.items():
        if key in config and config[key] != only:
            raise ContractError(f"draft config.json: {key} is {config[key]!r}; only {only!r} is supported")
    rope_type = (config.get("rope_parameters") or {}).get("rope_type", "default")
    if rope_type != "default":
        raise ContractError(f"draft config.json: rope_type is {rope_type!r}; only 'default' is supported")


def _gate(config: Mapping[str, Any]) -> GateKind:
    architectures = list(config.get("architectures") or [])
    if architectures and architectures[0] in PLAIN_ARCHITECTURES:
        if config.get("attn_output_gate"):
            raise ContractError(f"draft config.json: {architectures[0]} has no gate, but attn_output_gate is true")
        return "none"
    if len(architectures) != 1 or architectures[0] not in GATED_ARCHITECTURES:
        known = ", ".join((*GATED_ARCHITECTURES, *PLAIN_ARCHITECTURES))
        raise ContractError(f"draft config.json: architectures is {architectures}; known are {known}")
    if config.get("attn_output_gate") is not True or config.get("gate_activation") != "sigmoid":
        raise ContractError(
            f"draft config.json: {architectures[0]} needs attn_output_gate true, gate_activation sigmoid"
        )
    granularity = config.get("gate_granularity")
    if granularity not in ("elementwise", "headwise"):
        raise ContractError(f"draft config.json: gate_granularity is {granularity!r}; known are elementwise, headwise")
    return "elementwise" if granularity == "elementwise" else "headwise"


def tensor_shapes(config: DraftConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint and its shape. Token embeddings are not in it: they are the target's."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    aux_count = len(config.aux_hidden_state_layer_ids)
    attention = "midlayer.self_attn"
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, aux_count * config.target_hidden_size),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.hidden_norm.weight": (hidden,),
        f"{attention}.q_proj.weight": (q_size, 2 * hidden),
        f"{attention}.k_proj.weight": (kv_size, 2 * hidden),
        f"{attention}.v_proj.weight": (kv_size, 2 * hidden),
        f"{attention}.o_proj.weight": (hidden, q_size),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "norm.weight": (hidden,),
        "lm_head.weight": (config.draft_vocab_size, hidden),
    }
    if config.gate != "none":
        # Not "gate_proj": vLLM's and SGLang's loaders rewrite that name into the MLP.
        shapes[f"{attention}.g_proj.weight"] = (config.gate_size, 2 * hidden)
    if config.qk_norm:
        shapes |= {f"{attention}.{name}_norm.weight": (config.head_dim,) for name in "qk"}
    if config.fc_norm:
        shapes |= {f"fc_norm.{index}.weight": (config.target_hidden_size,) for index in range(aux_count)}
    if config.maps_vocabulary:
        # int64 offsets, target id = draft id + d2t[draft id]; and a bool mask over the target's vocabulary.
        shapes |= {"d2t": (config.draft_vocab_size,), "t2d": (config.vocab_size,)}
    return shapes
