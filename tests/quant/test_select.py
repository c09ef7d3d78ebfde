# SPDX-License-Identifier: Apache-2.0
"""Which layers are quantised, and recipes whose result vLLM could not load."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aerie.quant.architecture import Architecture
from aerie.quant.errors import QuantError
from aerie.quant.formats.base import Selection
from aerie.quant.recipe import QuantRecipe
from aerie.quant.select import ROUTER, select_layers

MIXTURE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 128,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "mlp_only_layers": [0],
    "tie_word_embeddings": False,
}
ROUTERS = tuple(f"model.layers.{layer}.mlp.gate" for layer in (1, 2))


def select(recipe: QuantRecipe, **changes: object) -> Selection:
    architecture = Architecture.of(MIXTURE | changes)
    return select_layers(architecture.shapes, architecture, recipe)


def recipe(*ignore: str, **options: object) -> QuantRecipe:
    return QuantRecipe.model_validate({"group_size": 32, "ignore": ignore} | options)


def test_the_default_leaves_head_and_routers() -> None:
    selection = select(QuantRecipe(group_size=32))
    # Attention of three layers, a plain MLP, two layers of four experts.
    assert len(selection.layers) == 3 * 4 + 3 + 2 * 4 * 3
    assert selection.kept == ("lm_head", *ROUTERS)
    assert selection.ignore == QuantRecipe().ignore
    assert not selection.head


def test_an_lm_head_that_is_not_ignored_is_quantised() -> None:
    selection = select(recipe(r"re:.*mlp\.gate$"))
    assert "lm_head" in selection.layers
    assert selection.head
    assert selection.kept == ROUTERS


def test_tied_embeddings_are_not() -> None:
    with pytest.raises(QuantError, match=r"ignore: lm_head is the model's embeddings.*add lm_head to ignore"):
        select(recipe(), tie_word_embeddings=True)
    assert select(recipe("lm_head"), tie_word_embeddings=True).kept == ROUTERS


def test_routers_stay_whatever_the_recipe_says() -> None:
    selection = select(recipe("lm_head"))
    assert selection.kept == ("lm_head", *ROUTERS)
    assert selection.ignore == ("lm_head", *ROUTERS)


def test_experts_of_a_layer_go_by_one_name() -> None:
    selection = select(recipe("lm_head", r"re:.*layers\.2\.mlp\..*"))
    assert selection.kept == ("lm_head", ROUTERS[0], "model.layers.2.mlp.experts", ROUTERS[1])
    assert not any(layer.startswith("model.layers.2.mlp.experts") for layer in selection.layers)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("model.layers.0.self_attn.k_proj", r"names .*k_proj but not .*[qv]_proj"),
        ("model.layers.0.mlp.up_proj", r"names .*up_proj but not .*gate_proj"),
        (r"re:.*experts\.3\..*", r"names .*experts\.3\.\w+ but not .*experts"),
    ],
)
def test_half_of_what_vllm_computes_as_one_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(QuantError, match=f"recipe option ignore: {words}"):
        select(recipe("lm_head", r"re:.*mlp\.gate$", pattern))


def test_formats_refuse_by_option() -> None:
    with pytest.raises(QuantError, match=r"recipe option symmetric: .*\(format: gptq\)"):
        select(recipe("lm_head", format="gptq", symmetric=False))
    with pytest.raises(QuantError, match=r"recipe option group_size: .*\(format: awq\)"):
        select(recipe("lm_head", format="awq", group_size="channel"))
    assert select(recipe("lm_head", format="gptq", group_size="channel")).layers


def routers_of_vllm() -> set[str]:
    """Last parts of the names that vLLM's models give their routers, and gates of shared experts in 16 bit."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    names = set()
    for path in (Path(spec.origin).parent / "model_executor/models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            kind, name = ast.unparse(node.func), words.get("prefix", "")
            plain = kind == "ReplicatedLinear" and words.get("quant_config") == "None" and "gate" in name
            if (kind == "GateLinear" or plain) and "{prefix}." in name:
                names.add(name.rpartition(".")[2].strip("'"))
    return names


def test_the_routers_of_every_model_of_vllm_stay_in_16_bit() -> None:
    names = routers_of_vllm()
    assert {"gate", "router", "shared_expert_gate"} <= names
    # Gemma 4's is `router.proj`.
    assert [name for name in sorted(names - {"proj"}) if not ROUTER.fullmatch(f"model.layers.0.mlp.{name}")] == []
    assert ROUTER.fullmatch("model.layers.0.router.proj")
    assert not ROUTER.fullmatch("model.layers.0.mlp.gate_proj")


def test_the_gate_of_a_shared_expert_stays_in_16_bit_by_every_recipe() -> None:
    architecture = Architecture.of(MIXTURE | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 64})
    selection = select_layers(architecture.shapes, architecture, recipe())
    gates = {f"model.layers.{layer}.mlp.{name}" for layer in (1, 2) for name in ("gate", "shared_expert_gate")}
    assert gates <= set(selection.kept) & set(selection.ignore)
    assert "model.layers.1.mlp.shared_expert.gate_proj" in selection.layers
