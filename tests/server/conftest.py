# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are only a config.json and an empty safetensors file: enough for everything before the engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    from aerie.server.settings import fields, variable

    for name in [*map(variable, fields()), "AERIE_CONFIG", "AERIE_HOME", "AERIE_DRAFT_KERNELS"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """`make_checkpoint("main", vocab_size=7)` writes the folder `main` with that change to a small Qwen3 config."""

    def make(name: str = "main", chat_template: str | None = None, **changes: Any) -> Path:  # noqa: ANN401 - JSON values
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**QWEN3, **changes}))
        save_file({"empty": numpy.zeros(1)}, folder / "model.safetensors")
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template)
        return folder

    return make
