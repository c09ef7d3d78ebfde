# SPDX-License-Identifier: Apache-2.0
"""Peak memory: three layers' size, as they lie on disk, and the text's activations, however many layers there are.

A layer in float32, or in 16 bit with an offset for each weight, is two of the three, what has been packed of it a
quarter of one, and the rest is left for what one linear layer at a time needs. Activations are the text's states, what
linear layers read and make, and, for AWQ, the second moments of what they read.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from aerie.quant.architecture import Architecture
from aerie.quant.convert import REST, units

MEASURED = Path(__file__).with_name("peak_memory.py")
LAYERS, TOKENS, FLOAT32 = 24, 24, 4
COMMON: dict[str, Any] = {"num_hidden_layers": LAYERS, "vocab_size": 96, "tie_word_embeddings": True, "head_dim": 64}
DENSE = Qwen3Config(
    hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8, **COMMON
)  # fmt: skip
MIXTURE = Qwen3MoeConfig(
    hidden_size=512, moe_intermediate_size=256, num_experts=26, num_experts_per_tok=4, num_attention_heads=8,
    num_key_value_heads=4, **COMMON,
)  # fmt: skip
SLACK = 8 << 20
"""Scratch of the libraries, Python's own objects."""
SaveModel = Callable[..., Path]


def write_model(folder: Path, config: PreTrainedConfig) -> int:
    """A checkpoint whose layers are all of the same random weights, each in a file of its own; bytes of a layer."""
    config.save_pretrained(folder)
    shapes = Architecture.of(config.to_dict()).shapes
    torch.manual_seed(0)
    found = units(list(shapes))
    first = {name: (0.05 * torch.randn(shapes[name])).bfloat16() for name in found["layer_00000"]}
    weight_map: dict[str, str] = {}
    for part, names in found.items():
        like = {name: torch.zeros(shapes[name]).bfloat16() for name in names} if part == REST else first
        tensors = dict(zip(names, like.values(), strict=True))
        save_file(tensors, folder / f"{part}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(names, f"{part}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(tensor.nbytes for tensor in first.values())


def activations(hidden: int, inner: int, method: str) -> int:
    """Bytes of what text makes of a layer: sixteen of the hidden size a token, five of the MLP's, two moments."""
    moments = 2 * max(hidden, inner) ** 2 if method == "awq" else 0
    return FLOAT32 * (TOKENS * (16 * hidden + 5 * inner) + moments)


@pytest.mark.parametrize(
    ("method", "config", "inner", "stop"),
    [
        pytest.param("none", DENSE, DENSE.intermediate_size, LAYERS + 2, id="rtn-without-text"),
        pytest.param("rtn", DENSE, DENSE.intermediate_size, 6, id="rtn"),
        pytest.param("awq", MIXTURE, MIXTURE.moe_intermediate_size, 3, id="awq-experts"),
        pytest.param("autoround", DENSE, DENSE.intermediate_size, 3, id="autoround"),
        pytest.param("autoround", MIXTURE, MIXTURE.moe_intermediate_size, 3, id="autoround-experts"),
    ],
)
def test_peak_memory_is_three_layers(
    save_model: SaveModel, tmp_path: Path, method: str, config: PreTrainedConfig, inner: int, stop: int
) -> None:
    layer = write_model(tmp_path / "large", config)
    assert layer > 20 << 20
    command = [sys.executable, "-P", str(MEASURED), method]
    arguments = map(str, (save_model(), tmp_path / "large", tmp_path / "int4", stop))
    done = subprocess.run(
        [*command, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    assert peak["layers"] == min(stop, LAYERS + 1)
    assert (tmp_path / "int4").exists() is (stop > LAYERS)
    assert peak["bytes"] < 3 * layer + activations(config.hidden_size, inner, method) + SLACK
