# SPDX-License-Identifier: Apache-2.0
"""`aerie train draft`: prompts, answers, captured states, draft vocabulary, training, export.

Answers and captured states are keyed by everything that shapes them, so trainings that differ in the head, the seed
or the optimisation share them; a training killed at any time goes on from its last checkpoint.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aerie.artefacts import provenance, sha256_tree
from aerie.draft_models.checkpoint import identify_target
from aerie.draft_models.contract import DraftConfig, TargetIdentity
from aerie.trainer.draft import vocab
from aerie.trainer.draft.capture import capture, read_description
from aerie.trainer.draft.data import Captured
from aerie.trainer.draft.export import export
from aerie.trainer.draft.initial import initial_head
from aerie.trainer.draft.loop import train
from aerie.trainer.draft.prompts import Chat, load_prompts
from aerie.trainer.draft.recipe import DraftRecipe, Head
from aerie.trainer.draft.regenerate import read_answers, regenerate, write_answers
from aerie.trainer.draft.stages import stage, target_hashes
from aerie.trainer.draft.target import Teacher


def run(recipe_path: Path) -> Path:
    """Train the draft a recipe file describes; returns the checkpoint's folder."""
    return run_recipe(DraftRecipe.read(recipe_path))


def run_recipe(recipe: DraftRecipe) -> Path:
    """Train the draft a recipe describes; returns the checkpoint's folder. Raises RecipeError, DataError."""
    hashes = target_hashes(recipe.target)
    validated = load_prompts(recipe.validation)
    trained = [chat for chat in load_prompts(recipe.prompts) if chat not in validated]
    captured = prepare(recipe, trained, recipe.answers.temperature, hashes)
    # Simulated acceptance takes the answer's tokens for the target's choices: validation answers are greedy.
    held_back = prepare(recipe, validated, 0.0, hashes)
    data, validation, teacher = Captured(captured), Captured(held_back), Teacher.load(captured / "teacher.safetensors")
    config = head_config(recipe.head, read_description(captured), identify_target(recipe.target))
    ids_V = vocab.choose(
        data.token_counts(config.vocab_size, supervised_only=True),
        data.token_counts(config.vocab_size, supervised_only=False),
        config.draft_vocab_size,
    )
    head = initial_head(config, teacher, ids_V, recipe.training.seed)
    inputs = {folder.name: _digest(folder) for folder in (captured, held_back)}
    settings = recipe.model_dump(mode="json", include={"head", "training"})
    checkpoint = recipe.work / f"training-{_key(settings, inputs)}" / "checkpoint.pt"
    state = train(head, teacher, data, validation, recipe.training, checkpoint)
    record = provenance(recipe.model_dump(mode="json"), [recipe.training.seed], {**hashes, **inputs})
    export(head, recipe.output, record, recipe.weights, state.history, read_description(captured))
    return recipe.output


def prepare(recipe: DraftRecipe, chats: list[Chat], temperature: float, hashes: Mapping[str, str]) -> Path:
    """The folder of captured states for these prompts, made unless it exists."""
    asked: dict[str, Any] = {"answers": {**recipe.answers.model_dump(mode="json"), "temperature": temperature}}
    # The prompts themselves, not what they were asked by: a clinic or a file that changed makes new answers.
    inputs = {**hashes, "prompts": hashlib.sha256(repr(chats).encode()).hexdigest()}
    answers = stage(
        recipe.work,
        "answers",
        asked,
        inputs,
        lambda folder: write_answers(
            folder / "answers.jsonl", regenerate(recipe.target, chats, recipe.answers, temperature)
        ),
    )
    asked["capture"] = recipe.capture.model_dump(mode="json")
    answered = read_answers(answers / "answers.jsonl")
    inputs["answers"] = _digest(answers)
    return stage(
        recipe.work, "capture", asked, inputs, lambda folder: capture(recipe.target, answered, recipe.capture, folder)
    )


def head_config(head: Head, description: Mapping[str, Any], target: TargetIdentity | None) -> DraftConfig:
    """The head's shape: what the recipe gives, the target's where it is silent."""
    shape = description["target"]
    return DraftConfig(
        hidden_size=shape["hidden_size"],
        target_hidden_size=shape["hidden_size"],
        intermediate_size=head.intermediate_size or shape["intermediate_size"],
        num_attention_heads=head.num_attention_heads or shape["num_attention_heads"],
        num_key_value_heads=head.num_key_value_heads or shape["num_key_value_heads"],
        head_dim=shape["head_dim"],
        vocab_size=shape["vocab_size"],
        draft_vocab_size=min(head.draft_vocab_size or shape["vocab_size"], shape["vocab_size"]),
        aux_hidden_state_layer_ids=tuple(description["aux_hidden_state_layer_ids"]),
        gate=head.gate,
        qk_norm=head.attention == "qwen3",
        rms_norm_eps=shape["rms_norm_eps"],
        rope_theta=shape["rope_theta"],
        max_position_embeddings=shape["max_position_embeddings"],
        norm_before_residual=head.norm_before_residual,
        fc_norm=head.fc_norm,
        norm_output=head.norm_output,
        target=target,
    )


def _digest(folder: Path) -> str:
    return _key(sha256_tree(folder, "[!p]*"), {})


def _key(settings: Mapping[str, object], inputs: Mapping[str, object]) -> str:
    return hashlib.sha256(repr((dict(settings), dict(inputs))).encode()).hexdigest()[:16]
