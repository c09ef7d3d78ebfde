# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from aerie.trainer.clinic.corpus import dialogues
from aerie.trainer.main.data import IGNORED, LENGTH_MULTIPLE, RightPadding, encode, segments
from aerie.trainer.main.recipe import MainRecipe
from aerie.trainer.main.run import run
from aerie.trainer.main.tokenizer import train_tokenizer
from aerie.trainer.recipe import RecipeError

VOCABULARY, CONTEXT = 1024, 2048
OPTIMISATION = {"documents_per_step": 4, "learning_rate": 1e-3, "save_steps": 2, "precision": "float32"}
RECIPE = {
    "corpus": {"documents": 16, "validation_documents": 4},
    "shape": {"layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": VOCABULARY},
    "optimisation": OPTIMISATION,
}


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


def _recipe(folder: Path, epochs: float) -> Path:
    text = {**RECIPE, "output": str(folder / "main")}
    text["optimisation"] = OPTIMISATION | {"epochs": epochs}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


def test_training_writes_a_checkpoint_that_loads_and_says_where_it_comes_from(tmp_path: Path) -> None:
    out = run(_recipe(tmp_path, epochs=1))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(out).chat_template
    card = json.loads((out / "aerie.json").read_text())
    assert card["validation_perplexity"] > 1
    assert card["training"]["steps"] == 4
    assert card["provenance"]["inputs"].keys() >= {"index.yaml", "cardiology.yaml"}


def test_a_recipe_names_the_field_that_is_wrong(tmp_path: Path) -> None:
    path = _recipe(tmp_path, epochs=1)
    path.write_text(path.read_text() + "learning_speed: 3\n")
    with pytest.raises(RecipeError, match="learning_speed"):
        MainRecipe.read(path)
