# SPDX-License-Identifier: Apache-2.0
"""Plain EAGLE-3 heads, of ours and of other makers: what vLLM builds from their configuration, held to their tensors.

vLLM's loader reports tensors that it has no place for, but neither missing ones nor a q_proj that is too long: such a
head is served wrong in silence. So every name and shape is checked here. Read against 0.32.0: `llama_eagle3.py`,
`qwen3_eagle3.py`, `transformers_utils/configs/{eagle,speculators/algos}.py`, and the two readers of layer ids,
`gpu_model_runner.py` (V1) and `gpu/spec_decode/eagle/eagle3_utils.py` (V2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from aerie.draft_models.contract import PLAIN_ARCHITECTURE, PLAIN_QWEN3_ARCHITECTURE, DraftMismatch
from aerie.draft_models.headers import Shapes

Config = Mapping[str, Any]

LLAMA: Final = (
    "LlamaForCausalLM",
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "Eagle3MiniMaxM2ForCausalLM",
    "Eagle3Qwen2_5vlForCausalLM",
    "Eagle3Qwen3vlForCausalLM",
)
"""Architectures of which vLLM makes its Llama head when it is told that the method is eagle3."""
QWEN3: Final = ("Qwen3ForCausalLM", "Eagle3Qwen3ForCausalLM")
"""Those of its Qwen3 head."""
HEAD_DIMS: Final = {"qwen3": 128}
"""Default of `head_dim` by `model_type`; elsewhere hidden_size / num_attention_heads."""
MODEL_TYPES: Final = ("llama", "qwen2", "qwen3", "mistral", "minimax_m2")
BOUNDARY_TARGETS: Final = ("GptOssForCausalLM",)
"""Whose heads number layer ids as vLLM does, whatever the first one is (sgl-project/sglang#32334)."""
MOST_LAYERS: Final = 64
"""Of a head; those with more than one are rare."""
UNUSED: Final = ("t2d", "mask_hidden", "rotary_emb.inv_freq")
"""Tensors that vLLM passes over."""


def text_config(config: Config) -> Config:
    """The language model's part of a main model's configuration."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def is_eagle3(config: Config, names: Mapping[str, object] | None = None) -> bool:
    """Whether a draft is an EAGLE-3 head: by its architecture, by its format, or by its tensors' names.

    Heads of the EAGLE-3 authors call themselves LlamaForCausalLM; vLLM then goes by the folder's name, we by tensors
    that no language model has.
    """
    named = any("eagle3" in str(name).lower() for name in config.get("architectures") or [])
    if named or config.get("speculators_model_type") in ("eagle3", "peagle"):
        return True
    return "fc.weight" in (names or {}) and any(name.endswith("hidden_norm.weight") for name in names or {})


@dataclass(frozen=True)
class PlainHead:
    """A head's configuration in one form, whoever made it."""

    config: Config
    """Flat, with vLLM's defaults filled in."""
    qwen3: bool
    """Whether vLLM builds its Qwen3 head, which normalises queries and keys."""
    layer_ids: tuple[int, ...]
    """Id L is the target's residual stream after L layers; empty for a head that reads the last state alone."""
    overrides: Config
    """What vLLM must be told beside the stored configuration to read these ids, on either of its runners."""
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, stored: Config, target: Config) -> Self:
        """Read a head's config.json for a target's. Raises DraftMismatch without the folder's name."""
        try:
            return cls._of(stored, target)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DraftMismatch):
                raise
            raise DraftMismatch(f"config.json has a value of the wrong kind ({error}); copy the head again") from error

    @classmethod
    def _of(cls, stored: Config, target: Config) -> Self:
        flat = _flat(stored)
        architecture = next(iter(flat.get("architectures") or []), None)
        if architecture not in (*LLAMA, *QWEN3):
            known = ", ".join(name for name in (*LLAMA, *QWEN3) if "Eagle3" in name)
            raise DraftMismatch(f"architectures is [{architecture}], of which vLLM has no EAGLE-3 head; it has {known}")
        if flat.get("model_type") not in MODEL_TYPES:
            raise DraftMismatch(f"model_type is {flat.get('model_type')!r}; write llama, or qwen3 for a Qwen3 head")
        if flat.get("attn_output_gate"):
            raise DraftMismatch(f"attn_output_gate is true, and vLLM's {architecture} has no gate; {GATE_FIX}")
        ids, overrides, remarks = _layer_ids(flat, target)
        return cls(_with_defaults(flat), architecture in QWEN3, ids, overrides, remarks)

    def to_contract(self) -> dict[str, Any]:
        """The configuration of a head of ours with these tensors, for DraftConfig.from_hf."""
        ids = {"eagle_aux_hidden_state_layer_ids": list(self.layer_ids), "num_aux_hidden_states": len(self.layer_ids)}
        architecture = PLAIN_QWEN3_ARCHITECTURE if self.qwen3 else PLAIN_ARCHITECTURE
        return {**self.config, **ids, "architectures": [architecture]}

    @property
    def target_hidden_size(self) -> int:
        """Size of the states that the head reads."""
        return int(self.config["target_hidden_size"])

    @property
    def draft_vocab_size(self) -> int:
        """Rows of its lm_head."""
        return int(self.config["draft_vocab_size"])


GATE_FIX: Final = (
    "write its gate as self_attn.g_proj.weight and its architecture as Eagle3GatedLlamaForCausalLM "
    "(docs/checkpoints.md), or use --no-draft"
)


def _flat(stored: Config) -> dict[str, Any]:
    """A flat configuration: of the speculators format what vLLM makes of it."""
    kind = stored.get("speculators_model_type")
    if kind is None:
        return dict(stored)
    if kind != "eagle3":
        raise DraftMismatch(f"speculators_model_type is {kind!r}; of that format EAGLE-3 heads (eagle3) are served")
    layer = stored.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        raise DraftMismatch("transformer_layer_config is missing, which the speculators format keeps the layer in")
    names = ("draft_vocab_size", "target_hidden_size", "norm_before_fc", "fc_norm", "norm_output", "target_identity")
    flat = {**layer, **{name: stored[name] for name in names if stored.get(name) is not None}}
    flat["norm_before_residual"] = stored.get("norm_before_residual", True)
    if ids := stored.get("eagle_aux_hidden_state_layer_ids"):
        flat["eagle_aux_hidden_state_layer_ids"] = ids
    model_type = flat.setdefault("model_type", "llama")
    flat["architectures"] = ["Eagle3Qwen3ForCausalLM" if model_type == "qwen3" else "Eagle3LlamaForCausalLM"]
    return flat


def _with_defaults(flat: Config) -> dict[str, Any]:
    needed = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "num_hidden_layers")
    for name in needed:
        value = flat.get(name)
        if not isinstance(value, int) or value < 1:
            raise DraftMismatch(f"{name} is {value!r}; write the head's own")
    if flat["num_hidden_layers"] > MOST_LAYERS:
        raise DraftMismatch(f"num_hidden_layers is {flat['num_hidden_layers']}; write the head's own, mostly 1")
    for name in ("num_key_value_heads", "head_dim", "target_hidden_size", "draft_vocab_size"):
        if flat.get(name) is not None and not isinstance(flat[name], int):
            raise DraftMismatch(f"{name} is {flat[name]!r}; write the head's own")
    nested = flat.get("eagle_config") or {}
    heads, hidden = flat["num_attention_heads"], flat["hidden_size"]
    defaults = {
        "num_key_value_heads": heads,
        "head_dim": HEAD_DIMS.get(flat["model_type"], hidden // heads),
        "target_hidden_size": hidden,
        "draft_vocab_size": flat["vocab_size"],
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
    }
    absent = {name: value for name, value in defaults.items() if flat.get(name) is None}
    return {**flat, **absent, "norm_before_fc": nested.get("norm_before_fc", flat.get("norm_before_fc", False))}


def _layer_ids(flat: Config, target: Config) -> tuple[tuple[int, ...], Config, tuple[str, ...]]:
    """The ids as vLLM counts, what it must be told to use them, and what an operator should know.

    `eagle_aux_hidden_state_layer_ids` at top level is vLLM's own key. Inside `eagle_config` it is that of SpecForge and
    ModelOpt, where ids that begin with 1 are outputs of layers counted from 0, as SGLang has it
    (sgl-project/sglang#25454); V1 takes them as they are, and V2 does not look at them.
    """
    nested = flat.get("eagle_config") or {}
    if not nested.get("use_aux_hidden_state", True):
        return (), {}, ()
    layers = text_config(target).get("num_hidden_layers", 0)
    named, inner = flat.get("eagle_aux_hidden_state_layer_ids"), nested.get("eagle_aux_hidden_state_layer_ids")
    ids = named or inner or (2, layers // 2, layers - 3)
    remarks: tuple[str, ...] = ()
    if not all(isinstance(number, int) for number in ids):
        raise DraftMismatch(f"eagle_aux_hidden_state_layer_ids is {ids!r}; write a list of layer numbers")
    boundary = set(target.get("architectures") or []) & set(BOUNDARY_TARGETS)
    if not named and inner and inner[0] == 1 and not boundary:
        ids = [number + 1 for number in inner]
        remarks = (
            f"eagle_config.eagle_aux_hidden_state_layer_ids {list(inner)} are taken as SGLang takes them, as layers "
            f"counted from 0, so states after {ids} layers are read; another reading is written at top level",
        )
    if sorted(set(ids)) != list(ids) or ids[0] < 0 or ids[-1] > layers:
        raise DraftMismatch(
            f"eagle_aux_hidden_state_layer_ids {list(ids)} must be distinct, ascending and within the {layers} layers "
            f"of the target"
        )
    overrides = {"eagle_aux_hidden_state_layer_ids": list(ids), "num_aux_hidden_states": len(ids)}
    return tuple(ids), {} if not (named or inner) else overrides, remarks


def tensor_shapes(head: PlainHead) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of the tensors that vLLM's class needs, and of those that it can do without."""
    config = head.config
    hidden, target_hidden = config["hidden_size"], head.target_hidden_size
    states = len(head.layer_ids) * target_hidden
    needed: dict[str, tuple[int, ...]] = {"norm.weight": (hidden,)}
    optional: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config["vocab_size"], hidden),
        "lm_head.weight": (head.draft_vocab_size, hidden),
    }
    if states:
        needed["fc.weight"] = (hidden, states)
    else:
        optional["fc.weight"] = (hidden, 3 * target_hidden)
    if config["norm_before_fc"]:
        needed["input_norm.weight"] = (states,)
    if config.get("fc_norm"):
        needed |= {f"fc_norm.{index}.weight": (target_hidden,) for index in range(len(head.layer_ids))}
    for index in range(config["num_hidden_layers"]):
        needed |= _layer(config, f"layers.{index}", 2 * hidden if index == 0 else hidden, qk_norm=head.qwen3)
        (needed if index == 0 else optional)[f"layers.{index}.hidden_norm.weight"] = (hidden,)
    if head.draft_vocab_size != config["vocab_size"]:
        # A head whose output rows are not the target's tokens has its own, and the map between them.
        needed |= {"d2t": (head.draft_vocab_size,), "lm_head.weight": optional.pop("lm_head.weight")}
    if hidden != target_hidden:
        # What the target would lend is of another width.
        for name in optional.keys() & {"embed_tokens.weight", "lm_head.weight"}:
            needed[name] = optional.pop(name)
    return needed, optional


def _layer(config: Config, name: str, inputs: int, *, qk_norm: bool) -> dict[str, tuple[int, ...]]:
    hidden, inner, head_dim = (config[key] for key in ("hidden_size", "intermediate_size", "head_dim"))
    queries = config["num_attention_heads"] * head_dim
    outputs = {
        "q": queries,
        "k": config["num_key_value_heads"] * head_dim,
        "v": config["num_key_value_heads"] * head_dim,
    }
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.input_layernorm.weight": (hidden,),
        f"{name}.post_attention_layernorm.weight": (hidden,),
        **{f"{attention}.{kind}_proj.weight": (size, inputs) for kind, size in outputs.items()},
        f"{attention}.o_proj.weight": (hidden, queries),
        f"{mlp}.gate_proj.weight": (inner, hidden),
        f"{mlp}.up_proj.weight": (inner, hidden),
        f"{mlp}.down_proj.weight": (hidden, inner),
    }
    if qk_norm:
        shapes |= {f"{attention}.{kind}_norm.weight": (head_dim,) for kind in "qk"}
    if config.get("attention_bias"):
        shapes |= {f"{attention}.{kind}_proj.bias": (size,) for kind, size in outputs.items()}
        if not qk_norm:
            shapes[f"{attention}.o_proj.bias"] = (hidden,)
    if config.get("mlp_bias") and not qk_norm:
        shapes |= {
            f"{mlp}.gate_proj.bias": (inner,),
            f"{mlp}.up_proj.bias": (inner,),
            f"{mlp}.down_proj.bias": (hidden,),
        }
    return shapes


def canonical(name: str) -> str:
    """A tensor's name as vLLM's class has it."""
    return name.replace("midlayer.", "layers.0.")


def check_tensors(head: PlainHead, stored: Shapes) -> None:
    """Hold a head's tensors to what vLLM builds. Raises DraftMismatch without the folder's name."""
    shapes = {canonical(name): shape for name, shape in stored.items() if not name.endswith(UNUSED)}
    needed, optional = tensor_shapes(head)
    if not head.config["norm_before_fc"]:
        shapes.pop("input_norm.weight", None)
    unknown = sorted(shapes.keys() - needed.keys() - optional.keys())
    if gate := next((name for name in unknown if "self_attn" in name and ("gate" in name or "g_proj" in name)), None):
        raise DraftMismatch(f"{gate} is a gate, and vLLM's head of this architecture has none; {GATE_FIX}")
    if missing := sorted(needed.keys() - shapes.keys()):
        raise DraftMismatch(f"missing {', '.join(missing)}")
    if unknown:
        raise DraftMismatch(f"unknown {', '.join(unknown)}; vLLM has no place for them")
    for name, expected in (needed | optional).items():
        if shapes.get(name, expected) == expected:
            continue
        text = f"{name} has shape {list(shapes[name])}, the configuration says {list(expected)}"
        doubled = name.endswith("q_proj.weight") and shapes[name] == (2 * expected[0], expected[1])
        raise DraftMismatch(f"{text}: a doubled q_proj holds a gate; {GATE_FIX}" if doubled else text)
