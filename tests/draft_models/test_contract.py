# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from aerie.draft_models.contract import (
    GATED_ARCHITECTURE,
    GATED_QWEN3_ARCHITECTURE,
    PLAIN_ARCHITECTURE,
    PLAIN_QWEN3_ARCHITECTURE,
    ContractError,
    DraftConfig,
    GateKind,
    TargetIdentity,
    tensor_shapes,
)

HIDDEN, HEADS, HEAD_DIM = 8, 2, 4
GATES: tuple[GateKind, ...] = ("elementwise", "headwise", "none")
QK_NORM = (False, True)


def make(**changes: object) -> DraftConfig:
    values: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 12,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "vocab_size": 32,
        "draft_vocab_size": 16,
        "target_hidden_size": HIDDEN,
        "aux_hidden_state_layer_ids": (1, 2, 5),
        "gate": "elementwise",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 64,
    }
    return DraftConfig.model_validate(values | changes)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("qk_norm", QK_NORM)
def test_config_survives_the_round_trip_through_config_json(gate: GateKind, qk_norm: bool) -> None:
    target = TargetIdentity(name="t", config_sha256="0", weights_sha256={"a": "1"}, quantisation="compressed-tensors")
    norms = {"qk_norm": qk_norm, "fc_norm": True, "norm_output": True, "norm_before_residual": True}
    config = make(gate=gate, target=target, **norms)
    assert DraftConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("qk_norm", QK_NORM)
def test_transformers_keeps_everything_the_contract_needs(gate: GateKind, qk_norm: bool) -> None:
    from transformers import AutoConfig

    config = make(gate=gate, qk_norm=qk_norm)
    # By the model type: vLLM reads a draft's configuration through the class that transformers has for it.
    assert DraftConfig.from_hf(AutoConfig.for_model(**config.to_hf()).to_dict()) == config


@pytest.mark.parametrize(
    ("qk_norm", "model_type", "architecture"),
    [(False, "llama", PLAIN_ARCHITECTURE), (True, "qwen3", PLAIN_QWEN3_ARCHITECTURE)],
)
def test_plain_head_goes_by_the_name_unmodified_vllm_knows_and_has_no_gate_keys(
    qk_norm: bool, model_type: str, architecture: str
) -> None:
    plain = make(gate="none", qk_norm=qk_norm).to_hf()
    assert plain["architectures"] == [architecture]
    assert plain["model_type"] == model_type
    assert not [key for key in plain if "gate" in key]


@pytest.mark.parametrize(("qk_norm", "name"), [(False, GATED_ARCHITECTURE), (True, GATED_QWEN3_ARCHITECTURE)])
def test_the_architecture_alone_tells_the_attention(qk_norm: bool, name: str) -> None:
    config = make(qk_norm=qk_norm).to_hf()
    assert config["architectures"] == [name]
    assert not [key for key in config if "qk" in key]
    # vLLM puts "Eagle3" before any other name, and then knows no such model.
    assert name.startswith("Eagle3")


@pytest.mark.parametrize(("gate", "rows"), [("elementwise", HEADS * HEAD_DIM), ("headwise", HEADS)])
def test_gate_reads_embedding_and_hidden_and_avoids_the_mlp_s_name(gate: GateKind, rows: int) -> None:
    shapes = tensor_shapes(make(gate=gate))
    assert shapes["midlayer.self_attn.g_proj.weight"] == (rows, 2 * HIDDEN)
    assert not [name for name in shapes if "self_attn.gate_proj" in name]


def test_plain_head_is_the_gated_one_without_its_gate() -> None:
    assert tensor_shapes(make()).keys() - tensor_shapes(make(gate="none")).keys() == {
        "midlayer.self_attn.g_proj.weight"
    }


@pytest.mark.parametrize("gate", GATES)
def test_qwen3_s_attention_adds_a_norm_of_one_head_s_size_to_queries_and_keys(gate: GateKind) -> None:
    with_norms, without = (tensor_shapes(make(gate=gate, qk_norm=qk_norm)) for qk_norm in (True, False))
    added = {name: with_norms[name] for name in with_norms.keys() - without.keys()}
    assert added == {f"midlayer.self_attn.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}


def test_full_vocabulary_needs_no_map() -> None:
    # vLLM refuses d2t when the vocabularies have the same size.
    assert not tensor_shapes(make(draft_vocab_size=32)).keys() & {"d2t", "t2d"}


def test_fc_norm_adds_one_norm_per_aux_state() -> None:
    added = tensor_shapes(make(fc_norm=True)).keys() - tensor_shapes(make()).keys()
    assert added == {f"fc_norm.{index}.weight" for index in range(3)}


@pytest.mark.parametrize("ids", [(2, 1, 5), (1, 1, 5), (-1, 1, 5), ()])
def test_layer_ids_vllm_would_reorder_or_merge_are_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="aux_hidden_state_layer_ids"):
        make(aux_hidden_state_layer_ids=ids)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type"),
        ({"gate_activation": "tanh"}, "gate_activation"),
        ({"gate_granularity": "token"}, "gate_granularity"),
        ({"architectures": ["Eagle3GatedQwen"]}, "architectures"),
        ({"architectures": [PLAIN_ARCHITECTURE]}, "attn_output_gate"),
        ({"num_aux_hidden_states": 4}, "num_aux_hidden_states"),
        ({"hidden_size": None}, "hidden_size"),
        ({"target_hidden_size": 16}, "target_hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"draft_vocab_size": 33}, "draft_vocab_size"),
    ],
)
def test_what_the_formula_does_not_cover_is_refused_by_name_in_one_line(change: dict[str, Any], named: str) -> None:
    config = make().to_hf()
    assert config["architectures"] == [GATED_ARCHITECTURE]
    with pytest.raises(ContractError, match=named) as refusal:
        DraftConfig.from_hf(config | change)
    assert "\n" not in str(refusal.value)
