# SPDX-License-Identifier: Apache-2.0
"""A checkpoint to INT4 and back: values, files, sizes, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from aerie.quant.dequantise import dequantise_checkpoint, load_dequantised
from aerie.quant.errors import (
    NotQuantisedError,
    OutputError,
    QuantError,
)
from aerie.quant.formats import FORMATS
from aerie.quant.methods.rtn import round_to_nearest
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import QuantReport
from aerie.quant.run import quantise
from aerie.quant.select import scheme_of

RECIPE = QuantRecipe(group_size=32)
LINEAR = "model.layers.1.mlp.down_proj"
LINEARS = 14  # seven a layer
SaveModel = Callable[..., Path]


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        QuantRecipe(group_size="channel", symmetric=False),
        QuantRecipe(format="gptq", group_size=64),
        QuantRecipe(format="gptq", group_size="channel"),
        QuantRecipe(format="awq", group_size=32, symmetric=False),
        QuantRecipe(format="awq", group_size="channel"),
    ],
    ids=lambda recipe: f"{recipe.format}-{recipe.group_size}-{recipe.symmetric}",
)
def test_dequantised_weights_are_the_rounded_ones(save_model: SaveModel, tmp_path: Path, recipe: QuantRecipe) -> None:
    model, out = save_model(), tmp_path / "int4"
    report = quantise(model, out, recipe)
    before, after = load_file(model / "model.safetensors"), load_dequantised(out).state_dict()
    assert len(report.layers) == LINEARS
    for layer in report.layers:
        expected = round_to_nearest(before[f"{layer.name}.weight"], scheme_of(recipe), "mse").dequantise()
        assert torch.equal(after[f"{layer.name}.weight"], expected)
        assert layer.relative_error < 0.15
    rest = [name for name in before if name.removesuffix(".weight") not in {layer.name for layer in report.layers}]
    assert "model.embed_tokens.weight" in rest
    for name in rest:
        assert torch.equal(after[name], before[name].float())


@pytest.mark.parametrize("group_size", [32, "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_transformers_reads_the_same_values(
    save_model: SaveModel, tmp_path: Path, group_size: Literal[32, "channel"], symmetric: bool
) -> None:
    """An independent reader of the format: transformers through the compressed-tensors library; lm_head too."""
    recipe = QuantRecipe(group_size=group_size, symmetric=symmetric, ignore=())
    report = quantise(save_model(tie_word_embeddings=False), tmp_path / "int4", recipe)
    assert "lm_head" in {layer.name for layer in report.layers}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "int4", dtype=torch.float32)
    ours = load_dequantised(tmp_path / "int4")
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=1e-5, atol=1e-5)


def test_files_config_and_report(save_model: SaveModel, tmp_path: Path) -> None:
    model, out = save_model(), tmp_path / "int4"
    report = quantise(model, out, RECIPE)
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (out / "optimizer.pt").exists()
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] == 32
    assert config["quantization_config"]["ignore"] == list(RECIPE.ignore)
    assert QuantReport.model_validate_json((out / "quant_report.json").read_text()) == report
    assert report.bytes_after == (out / "model.safetensors").stat().st_size < report.bytes_before
    assert report.bits_per_quantised_weight == 4.5  # a bfloat16 scale for 32 weights
    assert set(report.provenance) == {"commit", "versions", "arguments", "seeds", "inputs", "machine"}


def test_heads_stay_16_bit_tied_or_not(save_model: SaveModel, tmp_path: Path) -> None:
    quantise(save_model(tie_word_embeddings=False), tmp_path / "int4", RECIPE)
    tensors = load_file(tmp_path / "int4/model.safetensors")
    assert tensors["lm_head.weight"].dtype == tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert tensors[f"{LINEAR}.weight_packed"].shape == (64, 192 // 8)


@pytest.mark.parametrize("name", FORMATS)
def test_float32_source_and_shards(save_model: SaveModel, tmp_path: Path, name: str) -> None:
    model = save_model(dtype=torch.float32, shard="30KB")
    quantise(model, tmp_path / "int4", RECIPE.model_copy(update={"format": name}))
    index = json.loads((tmp_path / "int4/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    for name, shard in index.items():
        assert name in load_file(tmp_path / "int4" / shard)
    assert json.loads((tmp_path / "int4/config.json").read_text())["dtype"] == "bfloat16"
    assert load_dequantised(tmp_path / "int4").state_dict()[f"{LINEAR}.weight"].shape == (64, 192)


def test_ignored_layers_stay(save_model: SaveModel, tmp_path: Path) -> None:
    recipe = QuantRecipe(group_size=32, ignore=("lm_head", r"re:.*\.down_proj", "model.layers.0.self_attn.o_proj"))
    report = quantise(save_model(), tmp_path / "int4", recipe)
    names = {layer.name for layer in report.layers}
    assert len(names) == LINEARS - 3
    assert LINEAR not in names


def test_same_input_same_bytes(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model()
    quantise(model, tmp_path / "first", RECIPE)
    quantise(model, tmp_path / "second", RECIPE)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


def test_dequantised_checkpoint_is_plain(save_model: SaveModel, tmp_path: Path) -> None:
    quantise(save_model(), tmp_path / "int4", RECIPE)
    dequantise_checkpoint(tmp_path / "int4", tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    plain = load_file(tmp_path / "plain/model.safetensors")
    expected = load_dequantised(tmp_path / "int4").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain.items())
    assert (tmp_path / "plain/tokenizer.json").is_file()


def test_methods_that_look_at_text_ask_for_it(save_model: SaveModel, tmp_path: Path) -> None:
    with pytest.raises(QuantError, match="recipe option calibration: method: awq looks at text"):
        quantise(save_model(), tmp_path / "int4", QuantRecipe(method="awq", group_size=32))


def test_refuses_outputs_that_would_overwrite(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model()
    with pytest.raises(OutputError, match="own folder"):
        quantise(model, model, RECIPE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me")
    with pytest.raises(OutputError, match="not written by"):
        quantise(model, tmp_path / "mine", RECIPE)
    assert (tmp_path / "mine/letter.txt").is_file()
    quantise(model, tmp_path / "int4", RECIPE)
    quantise(model, tmp_path / "int4", RECIPE)  # its own result it may replace


def test_tensors_of_a_layer_may_lie_in_two_shards(save_model: SaveModel, tmp_path: Path) -> None:
    quantise(save_model(), tmp_path / "int4", QuantRecipe(format="awq", group_size=32))
    expected = load_dequantised(tmp_path / "int4").state_dict()
    tensors = load_file(tmp_path / "int4/model.safetensors")
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for place, (name, tensor) in enumerate(sorted(tensors.items())):
        shards[place % 2][name] = tensor
    weight_map: dict[str, str] = {}
    for place, shard in enumerate(shards):
        save_file(shard, tmp_path / f"int4/{place}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, f"{place}.safetensors")
    (tmp_path / "int4/model.safetensors").unlink()
    (tmp_path / "int4/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    after = load_dequantised(tmp_path / "int4").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in after.items())


def test_refuses_what_the_format_cannot_before_reading_a_weight(save_model: SaveModel, tmp_path: Path) -> None:
    recipe = QuantRecipe(format="gptq", group_size=32, symmetric=False)
    with pytest.raises(QuantError, match=r"recipe option symmetric: .* set symmetric: true"):
        quantise(save_model(), tmp_path / "int4", recipe)
    assert not (tmp_path / "int4").exists()


def test_refuses_to_dequantise_what_is_not_int4(save_model: SaveModel, tmp_path: Path) -> None:
    with pytest.raises(NotQuantisedError, match="aerie quantize"):
        load_dequantised(save_model())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group_size: 48", "group_size"),
        ("bitz: 4", r"bitz: is no option; did you mean bits\? The options here are batch_documents, bits, clip, "),
        ("symmetric: half", "symmetric"),
        ("format: gguf", "format"),
        ("[", "not YAML"),
    ],
)
def test_recipe_files_name_the_option(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(QuantError, match=message):
        QuantRecipe.from_yaml(path)
    path.write_text("")
    assert QuantRecipe.from_yaml(path) == QuantRecipe()
    with pytest.raises(QuantError, match="cannot be read"):
        QuantRecipe.from_yaml(tmp_path / "missing.yaml")
