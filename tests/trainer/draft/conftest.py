# SPDX-License-Identifier: Apache-2.0
"""A random Qwen3 target small enough to run in milliseconds, and what was captured from it."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aerie.draft_models.checkpoint import identify_target, write_draft
from aerie.draft_models.contract import DraftConfig, GateKind, tensor_shapes
from aerie.trainer.draft.recipe import DraftRecipe, JsonlPrompts, Served
from aerie.trainer.draft.vocab import maps

WORDS = ["hello", "doctor", "my", "head", "hurts", "since", "monday", "what", "can", "i", "do"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tiny_config(gate: GateKind = "elementwise", **changes: object) -> DraftConfig:
    values: dict[str, object] = {
        "hidden_size": 32,
        "target_hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 60,
        "draft_vocab_size": 23,
        "aux_hidden_state_layer_ids": (1, 3, 4),
        "gate": gate,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
    }
    return DraftConfig.model_validate(values | changes)


def write_target(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=288,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 8, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the least that vLLM attends with on CPUs
        tie_word_embeddings=True,
        max_position_embeddings=128,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def write_chats(path: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    chats = [[{"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))}] for _ in range(count)]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., DraftConfig]:
    return _tiny_config


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    write_target(folder)
    return folder


@pytest.fixture(scope="session")
def recipe(target: Path, tmp_path_factory: pytest.TempPathFactory) -> DraftRecipe:
    """A whole training in a second or two; tests vary it with `model_copy` or `model_validate`."""
    root = tmp_path_factory.mktemp("draft")
    write_chats(root / "train.jsonl", 14, seed=1)
    write_chats(root / "validation.jsonl", 4, seed=2)
    return DraftRecipe.model_validate(
        {
            "target": target,
            "output": root / "out",
            "work": root / "work",
            "prompts": {"source": "jsonl", "path": root / "train.jsonl"},
            "validation": {"source": "jsonl", "path": root / "validation.jsonl"},
            "answers": {"engine": "transformers", "max_tokens": 24},
            "capture": {"batch_tokens": 256, "shard_tokens": 300},
            "head": {"draft_vocab_size": 96},
            "training": {"epochs": 2, "batch_rows": 64, "steps": 3, "threads": 1},
        }
    )


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Served:
    path = tmp_path_factory.mktemp("prompts") / "held_out.jsonl"
    domains = ["head", "knee"] * (3)
    chats = [{"prompt": "hello doctor " * size, "domain": domain} for size, domain in enumerate(domains, 1)]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return Served(prompts=JsonlPrompts(path=path), draft_tokens=3, max_tokens=16)


@pytest.fixture(scope="session")
def head(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = json.loads((target / "config.json").read_text())
    config = DraftConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        vocab_size=shape["vocab_size"], draft_vocab_size=96, target_hidden_size=64,
        aux_hidden_state_layer_ids=(1, 3, 4), gate="elementwise", rms_norm_eps=1e-6, rope_theta=1e4,
        max_position_embeddings=128, target=identify_target(target),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(size, generator=generator) for name, size in tensor_shapes(config).items()}
    tensors |= maps(torch.arange(96), config.vocab_size)
    folder = tmp_path_factory.mktemp("head") / "draft"
    write_draft(folder, config, tensors, {})
    return folder
