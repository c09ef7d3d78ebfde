# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that cannot be quantised: each has its own message, and nothing is left that looks like a result."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aerie.quant.convert import HELD_OUT
from aerie.quant.errors import AlreadyQuantisedError, NotACheckpointError, QuantError, ShapeError
from aerie.quant.layerwise import CALIBRATION
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.quant.text import Document

RECIPE = QuantRecipe(group_size=32)
DOCUMENTS = [Document(tuple(range(8)))]
TEXTS = {CALIBRATION: DOCUMENTS, HELD_OUT: DOCUMENTS}
SHARDED = "30KB"
SaveModel = Callable[..., Path]


def replace_tensor(model: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = model / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: change(tensors[name])}, file, metadata={"format": "pt"})


def refused(model: Path, kind: type[QuantError], message: str, recipe: QuantRecipe = RECIPE) -> None:
    """Quantising is refused before anything is written."""
    out = model.with_name("int4")
    before = sorted(model.parent.iterdir())
    with pytest.raises(kind, match=message):
        quantise(model, out, recipe)
    assert sorted(model.parent.iterdir()) == before


def test_what_is_no_checkpoint(save_model: SaveModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", NotACheckpointError, r"empty: no config\.json there")
    model = save_model(shard=SHARDED)
    last = max(model.glob("*.safetensors"))
    last.unlink()
    refused(model, NotACheckpointError, rf"{last.name} missing; weights must be safetensors")
    (model / "model.safetensors.index.json").write_text("{")
    refused(model, NotACheckpointError, r"index\.json is damaged")
    (model / "config.json").write_text("{")
    refused(model, NotACheckpointError, r"config\.json or .* is damaged")


@pytest.mark.parametrize("kept", [0, 4, 200, -1], ids=["empty", "in-its-length", "in-its-header", "in-its-data"])
def test_a_truncated_shard(save_model: SaveModel, kept: int) -> None:
    model = save_model(shard=SHARDED)
    last = max(model.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:kept])
    refused(model, NotACheckpointError, rf"{last.name}: is not a whole safetensors file .*fetch it again")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_no_16_or_32_bit_numbers(save_model: SaveModel, dtype: torch.dtype, name: str) -> None:
    model = save_model()
    replace_tensor(model, name, lambda tensor: tensor.to(dtype))
    kind = {torch.int64: "I64", torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3"}[dtype]
    refused(
        model, NotACheckpointError, rf"{name} is of type {kind}; give a checkpoint whose weights are BF16, F16 or F32"
    )


def test_a_layer_whose_inputs_no_group_divides(save_model: SaveModel) -> None:
    layer = r"group_size: model\.layers\.0\.mlp\.down_proj"
    model = save_model(intermediate_size=96)
    refused(model, ShapeError, rf"{layer} has 96 inputs.*64; set group_size: 32", QuantRecipe(group_size=64))
    model = save_model(intermediate_size=72)
    refused(model, ShapeError, rf"{layer} has 72 inputs.*32; add it to ignore: \[model\.layers\.0\.mlp\.down_proj\]")


def test_a_checkpoint_that_is_quantised_already(save_model: SaveModel, tmp_path: Path) -> None:
    quantise(save_model(), tmp_path / "first", RECIPE)
    refused(tmp_path / "first", AlreadyQuantisedError, "has a quantization_config already; give the 16-bit checkpoint")


@pytest.mark.parametrize("with_text", [False, True], ids=["without-text", "with-text"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
    ],
)
def test_weights_that_are_not_finite(
    save_model: SaveModel, tmp_path: Path, name: str, value: str, with_text: bool
) -> None:
    model = save_model()

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = float(value)
        return tensor

    replace_tensor(model, name, spoil)
    with pytest.raises(QuantError, match=rf"{name} is not finite; the checkpoint is damaged"):
        quantise(model, tmp_path / "int4", RECIPE, TEXTS if with_text else {})
    # Finished layers are kept for the next try, under a name that no one takes for a checkpoint.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".int4.parts", "model"]
