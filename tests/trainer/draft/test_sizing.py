# SPDX-License-Identifier: Apache-2.0
"""Sizes against published ones, against memory that is really kept, and the figures in the shipped recipes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from aerie.artefacts import REPOSITORY
from aerie.draft_models.contract import DraftConfig, GateKind
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import Batch
from aerie.trainer.draft.loss import training_time_test
from aerie.trainer.draft.plan import DEVICES, comment, hours
from aerie.trainer.draft.recipe import DraftRecipe, JsonlPrompts
from aerie.trainer.draft.sizing import Sizes, Target, saved_bytes
from aerie.trainer.draft.target import Teacher
from aerie.trainer.recipe import RecipeError

QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
QWEN3_235B: dict[str, Any] = QWEN3_8B | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "decoder_sparse_step": 1,
}
INT4 = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
RECIPES = {
    "qwen3-8b-draft.yaml": (QWEN3_8B, 1),
    "qwen3-235b-a22b-draft.yaml": (QWEN3_235B | {"quantization_config": INT4}, 8),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def folder(config: dict[str, Any]) -> Path:
        target = tmp_path / "target"
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text(json.dumps(config))
        return target

    return folder


def recipe_for(target: Path, **changes: object) -> DraftRecipe:
    values: dict[str, Any] = {
        "target": target,
        "output": target / "out",
        "work": target / "work",
        "prompts": {"source": "jsonl", "path": target / "chats.jsonl", "count": 100},
        "answers": {"max_tokens": 44},
    }
    return DraftRecipe.model_validate(values | changes)


def test_the_parameters_of_published_models(write: Callable[[dict[str, Any]], Path]) -> None:
    dense = Target.read(write(QWEN3_8B))
    # The model card: 8.2 B, 6.95 B of them not embeddings.
    assert dense.parameters == 8_190_735_360
    assert dense.active - dense.parts["lm_head"] == pytest.approx(6.95e9, rel=1e-3)
    mixture = Target.read(write(QWEN3_235B))
    # The model card: 235 B, 234 B of them not embeddings, 22 B activated, its embeddings counted.
    assert mixture.parameters == pytest.approx(235.09e9, rel=1e-4)
    assert mixture.active + mixture.parts["embed_tokens"] == pytest.approx(22.2e9, rel=1e-3)
    # Published in GPTQ format with zero points: 124.5 GB.
    assert Target.read(write(QWEN3_235B | {"quantization_config": INT4})).weight_bytes == pytest.approx(124e9, rel=0.02)


@pytest.mark.parametrize("name", RECIPES)
def test_the_comments_of_shipped_recipes_are_what_the_plan_computes(
    name: str, write: Callable[[dict[str, Any]], Path]
) -> None:
    config, devices = RECIPES[name]
    path = REPOSITORY / "trainer" / "recipes" / name
    recipe = DraftRecipe.read(path).model_copy(update={"target": write(config)})
    computed = comment(Sizes.of(recipe, processes=devices), "h100", devices)
    assert computed in path.read_text(encoding="utf-8")


def test_captured_states_are_as_large_as_shards_are(write: Callable[[dict[str, Any]], Path]) -> None:
    sizes = Sizes.of(recipe_for(write(QWEN3_8B)), prompt_tokens=56)
    # Four states of 4096 in bf16; an int32 id, a bool, an int32 choice.
    assert sizes.state_bytes_per_token == 4 * 4096 * 2 + 9
    assert sizes.state_bytes == 100 * (56 + 44) * sizes.state_bytes_per_token


def test_a_disk_budget_that_is_too_small_captures_every_epoch_anew(write: Callable[[dict[str, Any]], Path]) -> None:
    target, training = write(QWEN3_8B), {"epochs": 5, "on_policy": {"epochs": 2}}
    passes = [
        Sizes.of(recipe_for(target, training=training, capture={"disk_budget_gib": budget})).passes
        for budget in (None, 1000.0, 0.1)
    ]
    assert passes == [1, 1, 7]


def test_sharding_spreads_masters_gradients_and_optimiser_states(write: Callable[[dict[str, Any]], Path]) -> None:
    target = write(QWEN3_8B)
    alone = Sizes.of(recipe_for(target), processes=8).memory()
    shared = Sizes.of(recipe_for(target, training={"sharding": "full"}), processes=8).memory()
    for part in ("weights", "gradients", "optimizer"):
        assert shared[part] == alone[part] / 8
    assert alone["weights"] + alone["gradients"] + alone["optimizer"] == 16 * Sizes.of(recipe_for(target)).trainable


def test_lora_trains_a_small_share(write: Callable[[dict[str, Any]], Path]) -> None:
    target = write(QWEN3_8B)
    whole, low_rank = (
        Sizes.of(recipe_for(target, training=training)).trainable for training in ({}, {"lora": {"rank": 16}})
    )
    assert low_rank < whole / 50


def test_time_halves_when_devices_double(write: Callable[[dict[str, Any]], Path]) -> None:
    sizes = Sizes.of(recipe_for(write(QWEN3_8B)))
    one, two = (hours(sizes, DEVICES["h100"], devices).total for devices in (1, 2))
    assert two == pytest.approx(one / 2)
    assert one > 0


def test_a_recipe_without_a_count_or_a_target_cannot_be_planned(
    write: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    target = write(QWEN3_8B)
    prompts = {"source": "jsonl", "path": target / "chats.jsonl"}
    with pytest.raises(RecipeError, match=r"prompts\.count"):
        _ = Sizes.of(recipe_for(target, prompts=prompts)).state_bytes
    with pytest.raises(RecipeError, match="target"):
        Sizes.of(recipe_for(tmp_path / "nowhere"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("gate", ["elementwise", "none"])
def test_activations_are_those_that_autograd_keeps(
    tiny_config: Callable[..., DraftConfig], gate: GateKind, precision: Literal["float32", "bfloat16"]
) -> None:
    rows, length, steps, vocab = 256, 300, 5, 150
    shape = {"hidden_size": 96, "target_hidden_size": 96, "intermediate_size": 320, "head_dim": 32}
    size = {"vocab_size": vocab, "draft_vocab_size": 100, "max_position_embeddings": 512}
    head = Eagle3Head(tiny_config(gate, **shape, **size), torch.randn(vocab, 96))
    head.t2d[:100] = True
    ids = torch.randint(0, 100, (1, length))
    batch = Batch(
        next_ids_BL=ids,
        aux_BLA=torch.randn(1, length, 3 * 96),
        rows_BR=torch.arange(length - rows, length)[None],
        row_mask_BR=torch.ones(1, rows, dtype=torch.bool),
        final_BRH=torch.randn(1, rows, 96),
        choices_BR=ids[:, -rows:],
        drawn_BR=ids[:, -rows:],
    )
    ours = {tensor.untyped_storage().data_ptr() for tensor in (*head.parameters(), *head.buffers(), batch.aux_BLA)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    teacher = Teacher(head.embed_WH, torch.randn(vocab, 96), torch.ones(96), 1e-6)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training_time_test(head, teacher, batch, steps, 0.8)
    measured = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in ours)
    assert saved_bytes(head.config, rows, steps, length, precision) == pytest.approx(measured, rel=0.1)


def test_the_chats_of_a_file_are_counted(write: Callable[[dict[str, Any]], Path]) -> None:
    target = write(QWEN3_8B)
    chats, recipe = target / "chats.jsonl", recipe_for(target)
    chats.write_text('{"prompt": "hello"}\n' * 60)
    for count, documents in ((20_000, 60), (7, 7), (None, 60)):
        prompts = JsonlPrompts(path=chats, count=count)
        assert Sizes.of(recipe.model_copy(update={"prompts": prompts})).documents == documents
    elsewhere = JsonlPrompts(path=target / "later.jsonl", count=20_000)
    assert Sizes.of(recipe.model_copy(update={"prompts": elsewhere})).documents == 20_000


def test_the_plan_is_printed_without_anything_being_run(write: Callable[[dict[str, Any]], Path]) -> None:
    target = write(QWEN3_8B)
    path = target / "recipe.yaml"
    recipe = recipe_for(target).model_dump(mode="json", include={"target", "output", "work", "prompts", "answers"})
    path.write_text(json.dumps(recipe))
    command = [sys.executable, "-P", "-m", "aerie", "train", "draft", "--recipe", str(path), "--plan", "--device"]
    environ = {**os.environ, "COLUMNS": "100"}
    shown = subprocess.run([*command, "H20"], capture_output=True, text=True, check=True, env=environ).stdout
    assert "1 x H20" in shown
    assert "captured states" in shown
    assert not (target / "work").exists()
    refused = subprocess.run([*command, "abacus"], capture_output=True, text=True, check=False, env=environ)
    assert refused.returncode == 2
    assert "--device abacus" in refused.stderr
