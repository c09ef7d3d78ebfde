# SPDX-License-Identifier: Apache-2.0
"""Sizes from a config.json against a published checkpoint and against written ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from safetensors.torch import load_file

from aerie.quant.errors import QuantError
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.quant.size import Size, sizes

QWEN3_235B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
PUBLISHED_BYTES = 124.5e9
"""Of Qwen3-235B-A22B in GPTQ, 4 bits, groups of 128."""
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
SaveModel = Callable[..., Path]


def test_a_published_checkpoint_of_a_large_mixture() -> None:
    found = sizes(QWEN3_235B, QuantRecipe(format="gptq", group_size=128))
    # The model card: 235 B parameters.
    assert found["total"].parameters == pytest.approx(235.09e9, rel=1e-4)
    assert found["total"].before == 2 * found["total"].parameters
    assert found["total"].after == pytest.approx(PUBLISHED_BYTES, rel=0.01)
    assert found["total"].ratio <= 0.265
    assert found.keys() == {"total", "embeddings", "lm_head", "norms", "router", "experts", "attention"}
    for part in ("embeddings", "lm_head", "norms", "router"):
        assert found[part].ratio == 1
    for part in ("experts", "attention"):
        # Half a byte a weight; for 128 of them a scale of 2 bytes and a zero point of half a byte.
        assert found[part].after == found[part].parameters * (0.5 + 2.5 / 128)
    assert sum((size for part, size in found.items() if part != "total"), Size()) == found["total"]


@pytest.mark.parametrize("mixture", [False, True], ids=["dense", "mixture"])
@pytest.mark.parametrize("name", ["compressed-tensors", "gptq", "awq"])
def test_sizes_are_those_of_what_is_written(
    save_model: SaveModel, tmp_path: Path, name: Literal["compressed-tensors", "gptq", "awq"], mixture: bool
) -> None:
    model = save_model(mixture=mixture, **(MIXTURE if mixture else {"tie_word_embeddings": False}))
    recipe = QuantRecipe(format=name, group_size=32, symmetric=name == "gptq")
    found = sizes(json.loads((model / "config.json").read_text()), recipe)
    report = quantise(model, tmp_path / "int4", recipe)
    for folder, size in ((model, found["total"].before), (tmp_path / "int4", found["total"].after)):
        assert sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values()) == size
    assert found["total"].parameters == report.parameters
    assert ("mlp" in found, "experts" in found, "lm_head" in found) == (not mixture, mixture, not mixture)


def test_what_quantising_would_refuse_has_no_size() -> None:
    with pytest.raises(QuantError, match="recipe option symmetric"):
        sizes(QWEN3_235B, QuantRecipe(format="gptq", symmetric=False))
    with pytest.raises(QuantError, match="architecture"):
        sizes({"model_type": "unheard-of"}, QuantRecipe())


def test_experts_that_checkpoints_hold_joined_stay_16_bit() -> None:
    found = sizes({"model_type": "gpt_oss", "num_hidden_layers": 1}, QuantRecipe())
    assert found["experts"].ratio == 1
    assert found["attention"].ratio < 0.3
