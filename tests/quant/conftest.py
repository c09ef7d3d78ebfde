# SPDX-License-Identifier: Apache-2.0
"""A tiny Qwen3, dense or a mixture, with random weights on disk; vLLM without an engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SaveModel = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Write a model and return its folder; keywords change its config, `shard` its largest file, `mixture` its kind."""

    def save(dtype: torch.dtype = torch.bfloat16, shard: str = "1GB", mixture: bool = False, **changes: object) -> Path:
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "vocab_size": 96,
            "tie_word_embeddings": True,
        }
        settings.update(changes)
        model: PreTrainedModel
        if mixture:
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**settings))
        torch.nn.Module.to(model, dtype)
        folder = tmp_path / "model"
        model.save_pretrained(folder, max_shard_size=shard)
        (folder / "tokenizer.json").write_text("{}")
        (folder / "optimizer.pt").write_text("left behind")
        return folder

    return save


@pytest.fixture(scope="module")
def vllm_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What vLLM's layers ask for: a configuration, a group of one process, our kernel."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.platforms import current_platform

    from aerie.quant import vllm_linear

    current_platform.import_kernels()
    vllm_linear.register()
    meeting = tmp_path_factory.mktemp("vllm") / "meeting"
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{meeting}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        yield
    destroy_model_parallel()
    destroy_distributed_environment()
