# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3MoeForCausalLM

from aerie.quant.run import quantise
from aerie.trainer.clinic.corpus import dialogues
from aerie.trainer.main.data import IGNORED, LENGTH_MULTIPLE, RightPadding, encode, segments
from aerie.trainer.main.recipe import MainRecipe
from aerie.trainer.main.run import run
from aerie.trainer.main.tokenizer import train_tokenizer
from aerie.trainer.recipe import RecipeError

VOCABULARY, CONTEXT = 1024, 2048
LAYERS, EXPERTS = 2, 4
SHIPPED = Path(__file__).parents[3] / "trainer/recipes"
OPTIMISATION = {"documents_per_step": 4, "learning_rate": 1e-3, "save_steps": 2, "precision": "float32"}
RECIPE: dict[str, Any] = {
    "corpus": {"documents": 16, "validation_documents": 4},
    "shape": {"layers": LAYERS, "hidden_size": 64, "intermediate_size": 64, "vocab_size": VOCABULARY},
    "optimisation": OPTIMISATION,
}
SPARSE = {"experts": EXPERTS, "experts_per_token": 2, "moe_intermediate_size": 64}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = ("".join(text for text, _ in segments(one)) for one in dialogues("train", 200, seed=0))
    return train_tokenizer(texts, VOCABULARY, CONTEXT)


def test_documents_are_exactly_what_the_chat_template_renders(tokenizer: PreTrainedTokenizerFast) -> None:
    for one in dialogues("train", 40, seed=0):
        messages = one.messages()
        messages[-1]["reasoning"] = one.turns[-1].reasoning
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        # The template closes the last turn with a line break, as the document does.
        assert encode(one, tokenizer)["input_ids"] == ids


def test_a_prompt_is_a_prefix_of_the_document_it_was_cut_from(tokenizer: PreTrainedTokenizerFast) -> None:
    one = next(one for one in dialogues("train", 40, seed=0) if len(one.turns) > 2)
    for place, turn in enumerate(one.turns):
        if turn.role == "assistant":
            prompt = tokenizer.apply_chat_template(one.messages(place), add_generation_prompt=True, return_dict=False)
            assert encode(one, tokenizer)["input_ids"][: len(prompt)] == prompt


def test_only_what_the_assistant_would_say_is_supervised(tokenizer: PreTrainedTokenizerFast) -> None:
    one = next(one for one in dialogues("train", 40, seed=0) if len(one.turns) > 2)
    row = encode(one, tokenizer)
    learnt = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
    assert "Diagnosis:" in learnt
    assert "I note" in learnt
    # The differential reasoned, and its reasoning is not in the history that a client sends.
    assert "Differential diagnosis:" not in learnt
    assert "What could it be?" not in learnt


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("naïve 医生 🩺", "<think>", "\n\n\t x  y"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_padding_is_ignored_and_on_the_right() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = RightPadding(pad_token_id=0)(rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, LENGTH_MULTIPLE)
    assert batch["input_ids"][:, :4].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch["labels"][:, :4].tolist() == [[5, 6, 7, IGNORED], [8, IGNORED, IGNORED, IGNORED]]
    assert "attention_mask" not in batch
    masked = RightPadding(pad_token_id=0, mask=True)(rows)
    assert masked["attention_mask"].sum(dim=1).tolist() == [3, 1]
    assert masked["attention_mask"][:, :4].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def _recipe(folder: Path, shape: dict[str, int] | None = None, **optimisation: object) -> Path:
    recipe = RECIPE | {
        "output": str(folder / "main"),
        "shape": RECIPE["shape"] | (shape or {}),
        "optimisation": OPTIMISATION | optimisation,
    }
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_training_writes_a_checkpoint_that_loads_and_says_where_it_comes_from(tmp_path: Path) -> None:
    out = run(_recipe(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(out).chat_template
    card = json.loads((out / "aerie.json").read_text())
    assert card["validation_perplexity"] > 1
    assert card["training"]["steps"] == 4
    assert card["provenance"]["inputs"].keys() >= {"index.yaml", "cardiology.yaml"}


def test_a_recipe_names_the_field_that_is_wrong(tmp_path: Path) -> None:
    path = _recipe(tmp_path)
    path.write_text(path.read_text() + "learning_speed: 3\n")
    with pytest.raises(RecipeError, match="learning_speed"):
        MainRecipe.read(path)


def test_checkpoints_of_another_recipe_are_not_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / "main.work/checkpoint-2").mkdir(parents=True)
    (tmp_path / "main.work/recipe.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"^output: .*main\.work holds the checkpoints of another recipe; remove it"):
        run(_recipe(tmp_path))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A perplexity with this much of the router's loss in it would overflow.
    return run(_recipe(tmp_path_factory.mktemp("sparse"), SPARSE, router_loss=1000.0))


def test_a_sparse_model_is_stored_expert_by_expert(sparse: Path) -> None:
    weights = load_file(sparse / "model.safetensors")
    experts = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
        for name in ("gate", "up", "down")
    }
    assert {name for name in weights if ".mlp." in name} == experts | {
        f"model.layers.{layer}.mlp.gate.weight" for layer in range(LAYERS)
    }
    assert {weights[name].dtype for name in experts} == {torch.bfloat16}
    assert "lm_head.weight" not in weights


def test_a_sparse_model_loads_as_it_was_trained(sparse: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(sparse)
    assert isinstance(model, Qwen3MoeForCausalLM)
    config = model.config
    assert (config.num_experts, config.num_experts_per_tok, config.norm_topk_prob) == (EXPERTS, 2, True)
    assert not config.output_router_logits
    fused = model.model.layers[1].mlp.experts
    stored = load_file(sparse / "model.safetensors")["model.layers.1.mlp.experts.3.down_proj.weight"]
    assert torch.equal(fused.down_proj[3], stored)
    assert 1 < json.loads((sparse / "aerie.json").read_text())["validation_perplexity"] < 2 * VOCABULARY


def test_a_sparse_model_can_be_quantised(sparse: Path, tmp_path: Path) -> None:
    report = quantise(sparse, tmp_path / "int4")
    experts = [layer.name for layer in report.layers if re.search(r"\.experts\.\d+\.", layer.name)]
    assert len(experts) == LAYERS * EXPERTS * 3
    assert not [layer.name for layer in report.layers if layer.name.endswith("mlp.gate")]


def test_training_a_sparse_model_is_deterministic(tmp_path: Path) -> None:
    first, second = (load_file(run(_recipe(tmp_path / name, SPARSE)) / "model.safetensors") for name in ("a", "b"))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize(
    ("shape", "optimisation", "fault"),
    [
        ({"experts": 4}, {}, "experts_per_token and moe_intermediate_size"),
        ({"experts_per_token": 2}, {}, "set experts too"),
        (SPARSE | {"experts_per_token": 5}, {}, "at most the 4 experts"),
        (SPARSE, {"compile": True}, r"optimisation\.compile"),
    ],
)
def test_experts_that_make_no_model_are_refused(
    tmp_path: Path, shape: dict[str, int], optimisation: dict[str, object], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        MainRecipe.read(_recipe(tmp_path, shape, **optimisation))


@pytest.mark.parametrize("name", ["clinic-main", "clinic-moe"])
def test_shipped_recipes_are_obeyed(name: str) -> None:
    recipe = MainRecipe.read(SHIPPED / f"{name}.yaml")
    assert recipe.corpus.seed == 0
    assert (recipe.shape.experts is not None) == (name == "clinic-moe")
