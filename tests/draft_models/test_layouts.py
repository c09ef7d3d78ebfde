# SPDX-License-Identifier: Apache-2.0
"""Every layout of EAGLE-3 heads that people have, against every kind of target: served, or refused by name."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aerie.artefacts import REPOSITORY
from aerie.draft_models.checkpoint import DraftMismatch, is_head, overrides, read_head, verify_alone, verify_draft
from aerie.draft_models.contract import ContractError
from aerie.draft_models.plain import LLAMA, QWEN3
from aerie.draft_models.targets import registry

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, DRAFT_VOCAB, LAYERS = 8, 12, 2, 1, 4, 32, 16, 8
IDS = "eagle_aux_hidden_state_layer_ids"
SHAPE = {
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM, "num_hidden_layers": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
    "max_position_embeddings": 64, "vocab_size": VOCAB,
}  # fmt: skip
FLAT = SHAPE | {"model_type": "llama", "draft_vocab_size": DRAFT_VOCAB, "tie_word_embeddings": False}
MODEL_OPT = {"use_aux_hidden_state": True, "use_last_layernorm": True, "use_input_layernorm_in_first_layer": True}
SPECULATORS = {
    "architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3", "draft_vocab_size": DRAFT_VOCAB,
    "norm_before_residual": True, "transformer_layer_config": SHAPE | {"model_type": "llama"},
    "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "meta-llama/Llama-3.1-8B-Instruct"}},
}  # fmt: skip
CONFIGS: Mapping[str, dict[str, Any]] = {
    "EAGLE-3 authors (yuhuili)": FLAT | {"architectures": ["LlamaForCausalLM"]},
    "Nebius": FLAT | {"architectures": ["LlamaForCausalLM"], "rope_theta": 5e5},
    "SpecForge": FLAT | {"architectures": ["LlamaForCausalLMEagle3"]},
    "SpecForge with layer ids (lmsys)": FLAT
    | {"architectures": ["LlamaForCausalLMEagle3"], "eagle_config": {IDS: [1, 3, 4], "use_aux_hidden_state": True}},
    "AngelSlim": FLAT | {"architectures": ["Eagle3LlamaForCausalLM"], "model_type": "qwen3"},
    "Qwen3 attention": FLAT | {"architectures": ["Eagle3Qwen3ForCausalLM"], "model_type": "qwen3"},
    "speculators (RedHat)": SPECULATORS,
    "speculators with layer ids": SPECULATORS | {IDS: [1, 2, 4, 6]},
    "ModelOpt (NVIDIA)": FLAT
    | {"architectures": ["LlamaForCausalLMEagle3"], "eagle_config": MODEL_OPT | {IDS: [1, 3, 4]}},
}
SERVED_IDS = {
    "SpecForge with layer ids (lmsys)": [2, 4, 5],
    "ModelOpt (NVIDIA)": [2, 4, 5],
    "speculators with layer ids": [1, 2, 4, 6],
}
TARGETS: Mapping[str, tuple[dict[str, Any], str | None]] = {
    "its own": ({}, None),
    "wider": ({"hidden_size": 16}, "target_hidden_size is 8, the target's is 16; use a draft trained for"),
    "another vocabulary": ({"vocab_size": VOCAB + 1}, "vocab_size is 32, the target's is 33; use a draft trained for"),
    "too shallow": ({"num_hidden_layers": 3}, "layers"),
    "without hidden states": ({"architectures": ["Gemma3ForConditionalGeneration"]}, "hands out no hidden states"),
}
"""By kind: what differs from the target that the heads fit, and why they are refused."""


def write_tensors(folder: Path, config: Mapping[str, Any]) -> None:
    """Random tensors under the names that a head's maker gives them."""
    layer = "layers.0" if "speculators_model_type" in config or config["model_type"] == "qwen3" else "midlayer"
    states = len(config.get(IDS, range(3))) * HIDDEN
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (HIDDEN, states), "norm.weight": (HIDDEN,), "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
        **{f"{layer}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "hidden_norm")},
        f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
        f"{layer}.self_attn.q_proj.weight": (queries, 2 * HIDDEN),
        **{f"{layer}.self_attn.{name}_proj.weight": (keys, 2 * HIDDEN) for name in "kv"},
        f"{layer}.self_attn.o_proj.weight": (HIDDEN, queries),
        **{f"{layer}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")},
        f"{layer}.mlp.down_proj.weight": (HIDDEN, INNER),
    }  # fmt: skip
    if config["architectures"][0] == "Eagle3Qwen3ForCausalLM":
        shapes |= {f"{layer}.self_attn.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
    if layer == "layers.0":
        shapes["embed_tokens.weight"] = (VOCAB, HIDDEN)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    mask = torch.arange(VOCAB) % 2 == 0
    tensors |= {"d2t": mask.nonzero().squeeze(1) - torch.arange(DRAFT_VOCAB), "t2d": mask}
    save_file(tensors, folder / "model.safetensors")


def write_head(folder: Path, maker: str, **changes: object) -> Path:
    folder.mkdir()
    config = CONFIGS[maker] | changes
    (folder / "config.json").write_text(json.dumps(config))
    write_tensors(folder, config)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_target(tmp_path / "target")


def write_target(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    shape = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **shape, **changes}))
    return folder


@pytest.mark.parametrize("maker", CONFIGS)
def test_a_head_of_its_own_target_is_served(maker: str, tmp_path: Path, target: Path) -> None:
    draft = write_head(tmp_path / "anything", maker)
    assert is_head(draft)
    verify_alone(draft)
    remarks = verify_draft(draft, target)
    assert bool(remarks) is ("eagle_config" in CONFIGS[maker])
    told = overrides(draft, target)
    assert told == (
        {}
        if maker not in SERVED_IDS
        else {IDS: SERVED_IDS[maker], "num_aux_hidden_states": told.get("num_aux_hidden_states")}
    )
    assert told.get("num_aux_hidden_states", 3) == len(SERVED_IDS.get(maker, [2, 4, 5]))


@pytest.mark.parametrize("maker", CONFIGS)
@pytest.mark.parametrize("kind", [kind for kind, (_, reason) in TARGETS.items() if reason])
def test_a_head_of_another_target_is_refused(maker: str, kind: str, tmp_path: Path) -> None:
    changes, reason = TARGETS[kind]
    draft = write_head(tmp_path / "anything", maker)
    with pytest.raises(DraftMismatch, match=f"^--(draft|model) .*{reason}") as refusal:
        verify_draft(draft, write_target(tmp_path / "other", **changes))
    assert "\n" not in str(refusal.value)
    assert "--no-draft" in str(refusal.value)


def test_a_multimodal_target_is_judged_by_its_text_model(tmp_path: Path) -> None:
    inner = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
    other = write_target(
        tmp_path / "vision", architectures=["Qwen3VLForConditionalGeneration"], text_config=inner, hidden_size=1
    )
    assert verify_draft(write_head(tmp_path / "d", "SpecForge"), other) == ()


def test_gpt_oss_heads_count_layers_as_vllm_does(tmp_path: Path) -> None:
    other = write_target(tmp_path / "gpt-oss", architectures=["GptOssForCausalLM"])
    draft = write_head(tmp_path / "d", "ModelOpt (NVIDIA)")
    assert overrides(draft, other)[IDS] == [1, 3, 4]
    assert verify_draft(draft, other) == ()


@pytest.mark.parametrize(
    ("ids", "served"), [([1, 3, 4], [2, 4, 5]), ([2, 4, 5], [2, 4, 5]), ([0, 3, 4], [0, 3, 4]), ([4, 6, 8], [4, 6, 8])]
)
def test_nested_layer_ids_are_read_as_sglang_reads_them(
    ids: list[int], served: list[int], tmp_path: Path, target: Path
) -> None:
    draft = write_head(tmp_path / "d", "SpecForge", eagle_config={IDS: ids})
    assert overrides(draft, target) == {IDS: served, "num_aux_hidden_states": 3}


@pytest.mark.parametrize("ids", [[1, 1, 4], [4, 3, 1], [2, 4, 9], [-1, 2, 3]])
@pytest.mark.parametrize("nested", [True, False])
def test_layer_ids_that_the_engine_would_merge_or_not_find_are_refused(
    ids: list[int], nested: bool, tmp_path: Path, target: Path
) -> None:
    draft = write_head(tmp_path / "d", "SpecForge", **({"eagle_config": {IDS: ids}} if nested else {IDS: ids}))
    with pytest.raises(DraftMismatch, match=rf"{IDS} .* must be distinct, ascending and within"):
        verify_draft(draft, target)


Tensors = dict[str, torch.Tensor]


def _rename(old: str, new: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def _double_q(tensors: Tensors) -> None:
    name = "midlayer.self_attn.q_proj.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name]])


SPOILT: Mapping[str, tuple[Callable[[Tensors], object], str]] = {
    "gate beside q": (
        lambda tensors: tensors.update({"midlayer.self_attn.gate_proj.weight": torch.ones(HEADS, 2 * HIDDEN)}),
        r"self_attn\.gate_proj\.weight is a gate, .* write its gate as self_attn\.g_proj\.weight",
    ),
    "gate in q": (_double_q, "a doubled q_proj holds a gate"),
    "no map": (lambda tensors: tensors.pop("d2t"), "missing d2t"),
    "no output rows": (lambda tensors: tensors.pop("lm_head.weight"), r"missing lm_head\.weight"),
    "no norm": (lambda tensors: tensors.pop("midlayer.hidden_norm.weight"), r"missing layers\.0\.hidden_norm\.weight"),
    "a wrapper's names": (_rename("fc.weight", "model.fc.weight"), r"missing fc\.weight"),
    "more than vLLM takes": (lambda tensors: tensors.update(extra=torch.ones(1)), "unknown extra; vLLM has no place"),
    "two states": (
        lambda tensors: tensors.update({"fc.weight": torch.ones(HIDDEN, 2 * HIDDEN)}),
        r"fc\.weight has shape \[8, 16\], the configuration says \[8, 24\]",
    ),
    "a map of floats": (lambda tensors: tensors.update(d2t=torch.ones(DRAFT_VOCAB)), "d2t is stored as F32"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_tensors_that_vllm_would_misread_are_refused(case: str, tmp_path: Path, target: Path) -> None:
    spoil, reason = SPOILT[case]
    draft = write_head(tmp_path / "d", "SpecForge")
    tensors = load_file(draft / "model.safetensors")
    spoil(tensors)
    save_file(tensors, draft / "model.safetensors")
    with pytest.raises(DraftMismatch, match=f"^--draft .*{reason}"):
        verify_alone(draft)
    with pytest.raises(DraftMismatch, match=f"^--draft .*{reason}"):
        verify_draft(draft, target)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attn_output_gate": True}, "attn_output_gate is true"),
        ({"architectures": ["Qwen2ForCausalLMEagle3"]}, r"architectures is \[Qwen2ForCausalLMEagle3\]"),
        ({"model_type": "eagle3"}, "model_type is 'eagle3'; write llama"),
        ({"speculators_model_type": "peagle"}, "speculators_model_type is 'peagle'"),
        ({"intermediate_size": None}, "intermediate_size is None"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"head_dim": "wide"}, "head_dim is 'wide'"),
        ({"architectures": "LlamaForCausalLMEagle3"}, "architectures is 'LlamaForCausalLMEagle3'; write a list"),
        ({"eagle_config": ["ids"]}, r"eagle_config is \['ids'\]; write an object"),
        ({"eagle_config": {IDS: 3}}, "value of the wrong kind"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq"),
    ],
)
def test_configurations_that_vllm_has_no_head_for_are_refused(
    changes: dict[str, object], reason: str, tmp_path: Path, target: Path
) -> None:
    draft = write_head(tmp_path / "d", "SpecForge", **changes)
    with pytest.raises(DraftMismatch, match=f"^--draft .*{reason}"):
        verify_draft(draft, target)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, r"no model\.safetensors"), (b"\x08", "not a whole safetensors")]
)
def test_weights_that_are_not_all_there_are_refused(
    content: bytes | None, reason: str, tmp_path: Path, target: Path
) -> None:
    draft = write_head(tmp_path / "d", "SpecForge")
    (draft / "model.safetensors").unlink()
    if content is not None:
        (draft / "model.safetensors").write_bytes(content)
    with pytest.raises(DraftMismatch, match=reason):
        verify_draft(draft, target)


def test_pickled_weights_are_refused_with_the_page_that_converts_them(tmp_path: Path, target: Path) -> None:
    draft = write_head(tmp_path / "d", "EAGLE-3 authors (yuhuili)")
    (draft / "model.safetensors").rename(draft / "pytorch_model.bin")
    with pytest.raises(
        DraftMismatch, match=r"pytorch_model\.bin, which can hold code; save them as safetensors, as docs/"
    ):
        verify_draft(draft, target)


def test_weights_in_several_files_are_one_head(tmp_path: Path, target: Path) -> None:
    draft = write_head(tmp_path / "d", "SpecForge")
    tensors = load_file(draft / "model.safetensors")
    (draft / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, draft / f"model-{number}.safetensors")
    assert verify_draft(draft, target) == ()


@pytest.mark.parametrize("maker", [maker for maker in CONFIGS if "speculators with" not in maker])
def test_a_head_of_another_maker_can_be_trained_on(maker: str, tmp_path: Path, target: Path) -> None:
    draft = write_head(tmp_path / "d", maker)
    config, tensors = read_head(draft, target)
    assert (config.gate, config.aux_hidden_state_layer_ids) == ("none", (2, 4, 5))
    assert config.norm_before_residual is ("speculators_model_type" in CONFIGS[maker])
    assert config.qk_norm is ("midlayer.self_attn.q_norm.weight" in tensors)
    assert torch.equal(tensors["fc.weight"], load_file(draft / "model.safetensors")["fc.weight"])


def test_a_head_that_the_contract_has_no_words_for_cannot(tmp_path: Path, target: Path) -> None:
    draft = write_head(tmp_path / "d", "SpecForge", rope_scaling={"rope_type": "llama3"})
    assert verify_draft(draft, target) == ()
    with pytest.raises(ContractError, match="rope_scaling"):
        read_head(draft, target)


def test_the_page_of_checkpoints_tells_of_every_layout() -> None:
    page = (REPOSITORY / "docs/checkpoints.md").read_text()
    assert [maker for maker in CONFIGS if f"| {maker} |" not in page] == []


def test_our_names_are_those_of_vllm() -> None:
    classes = registry()
    assert {classes[name][1] for name in LLAMA if name != "LlamaForCausalLM"} == {"Eagle3LlamaForCausalLM"}
    assert {classes[name][1] for name in QWEN3 if name != "Qwen3ForCausalLM"} == {"Eagle3Qwen3ForCausalLM"}
