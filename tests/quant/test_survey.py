# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's headers tell, and what is refused because of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from aerie.quant.errors import NotACheckpointError
from aerie.quant.survey import LayerClass, Survey, pattern, survey

COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
}
NAMED = {
    **COMPRESSED,
    "config_groups": {"group_0": {"targets": ["Linear", "re:.*lm_head"], "weights": {"num_bits": 4}}},
}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}


def integers(*shape: int) -> numpy.ndarray[Any, Any]:
    return numpy.zeros(shape, dtype=numpy.int32)


def halves(*shape: int) -> numpy.ndarray[Any, Any]:
    return numpy.zeros(shape, dtype=numpy.float16)


def compressed(layer: str, outputs: int, inputs: int, group: int, zeros: bool = False) -> dict[str, Any]:
    groups = inputs // group
    tensors = {
        f"{layer}.weight_packed": integers(outputs, inputs // 8),
        f"{layer}.weight_scale": halves(outputs, groups),
    }
    return tensors | ({f"{layer}.weight_zero_point": integers(-(-outputs // 8), groups)} if zeros else {})


def gptq(layer: str, outputs: int, inputs: int, group: int) -> dict[str, Any]:
    groups = inputs // group
    return {
        f"{layer}.qweight": integers(inputs // 8, outputs),
        f"{layer}.scales": halves(groups, outputs),
        f"{layer}.qzeros": integers(groups, outputs // 8),
    }


def awq(layer: str, outputs: int, inputs: int, group: int) -> dict[str, Any]:
    return gptq(layer, outputs, inputs, group) | {f"{layer}.qweight": integers(inputs, outputs // 8)}


def look(folder: Path, quantization: dict[str, Any] | None, tensors: dict[str, Any]) -> Survey:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization} if quantization else {}))
    return survey(folder)


def test_layers_that_differ_in_a_number_share_a_pattern() -> None:
    assert pattern("model.layers.10.mlp.experts.3.down_proj") == "model.layers.*.mlp.experts.*.down_proj"
    assert [pattern(name) for name in ("layers.0", "lm_head", "model.h2.fc1")] == [
        "layers.*",
        "lm_head",
        "model.h2.fc1",
    ]


@pytest.mark.parametrize(
    ("quantization", "tensors", "group", "symmetric"),
    [
        (COMPRESSED, compressed("model.layers.0.mlp.up_proj", 48, 64, 32), 32, True),
        (COMPRESSED, compressed("model.layers.0.mlp.up_proj", 48, 64, 32, zeros=True), 32, False),
        (COMPRESSED, compressed("model.layers.0.mlp.up_proj", 48, 64, 64), -1, True),
        (GPTQ, gptq("model.layers.0.mlp.up_proj", 48, 64, 32), 32, True),
        ({**GPTQ, "sym": False}, gptq("model.layers.0.mlp.up_proj", 48, 64, 32), 32, False),
        (AWQ, awq("model.layers.0.mlp.up_proj", 48, 64, 32), 32, False),
    ],
)
def test_every_format_is_read(
    tmp_path: Path, quantization: dict[str, Any], tensors: dict[str, Any], group: int, symmetric: bool
) -> None:
    found = look(tmp_path, quantization, tensors)
    layer = LayerClass("model.layers.*.mlp.up_proj", 48, 64, "F16", group, symmetric)
    assert found.layers == {layer: 1}
    assert found.refusal(layer) is None


def test_layers_are_counted_and_plain_ones_are_told_too(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"model.embed_tokens.weight": halves(80, 64), "model.norm.weight": halves(64)}
    for index in range(3):
        for expert in range(2):
            tensors |= compressed(f"model.layers.{index}.mlp.experts.{expert}.up_proj", 32, 64, 32)
    found = look(tmp_path, COMPRESSED, tensors)
    assert {layer.pattern: count for layer, count in found.layers.items()} == {
        "model.embed_tokens": 1,
        "model.layers.*.mlp.experts.*.up_proj": 6,
    }
    assert {layer.pattern: layer.expert for layer in found.layers} == {
        "model.embed_tokens": False,
        "model.layers.*.mlp.experts.*.up_proj": True,
    }
    assert [str(layer) for layer in found.layers] == ["80 x 64, F16", "32 x 64, INT4 symmetric, groups of 32"]


@pytest.mark.parametrize(
    ("quantization", "tensors", "reason"),
    [
        (COMPRESSED, compressed("model.fc", 48, 64, 16), "group size 16 is no multiple of 32"),
        (COMPRESSED, compressed("model.fc", 48, 104, 104), "104 inputs with one scale an output are no multiple of 32"),
        (COMPRESSED, compressed("model.fc", 44, 64, 32, zeros=True), "44 outputs with zero points"),
        (COMPRESSED, compressed("model.fc", 44, 64, 32), None),
        (COMPRESSED, compressed("lm_head", 44, 64, 32), "quantization_config does not name it"),
        (NAMED, compressed("lm_head", 44, 64, 32), None),
        (GPTQ, gptq("lm_head", 48, 64, 32), "quantization_config does not name it"),
        ({**GPTQ, "lm_head": True}, gptq("lm_head", 128, 64, 32), None),
        ({**GPTQ, "lm_head": True}, gptq("lm_head", 48, 64, 32), "vLLM pads 48 outputs of lm_head"),
        (AWQ, awq("model.layers.0.mlp.experts.0.up_proj", 48, 64, 64), "AWQ experts with one scale an output"),
    ],
)
def test_what_cannot_be_served_has_a_reason(
    tmp_path: Path, quantization: dict[str, Any], tensors: dict[str, Any], reason: str | None
) -> None:
    found = look(tmp_path, quantization, tensors)
    (layer,) = found.layers
    told = found.refusal(layer)
    assert told is None if reason is None else reason in str(told)


@pytest.mark.parametrize(
    "quantization",
    [
        None,
        {**GPTQ, "bits": 8},
        {**COMPRESSED, "config_groups": {"a": {"weights": {"num_bits": 4}}, "b": {"weights": {"num_bits": 8}}}},
        {"quant_method": "fp8"},
    ],
)
def test_what_is_not_int4_is_not_taken_for_it(tmp_path: Path, quantization: dict[str, Any] | None) -> None:
    found = look(
        tmp_path, quantization, {**compressed("a", 32, 64, 32), **gptq("b", 32, 64, 32), "c.weight": halves(2, 3)}
    )
    assert found.layers == {LayerClass("c", 2, 3, "F16"): 1}


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match=r"config\.json: cannot be read"):
        survey(tmp_path)
    with pytest.raises(NotACheckpointError, match=r"has packed integers but no model\.fc\.weight_scale"):
        look(tmp_path, COMPRESSED, {"model.fc.weight_packed": integers(4, 8)})
    for damaged in (b"", b"\x05\x00\x00\x00\x00\x00\x00\x00[1,2]", b"\xff" * 40):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(NotACheckpointError, match="is not a whole safetensors file"):
            survey(tmp_path)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ('{"weight_map": {"a": "model-00002.safetensors"}}', r"names model-00002\.safetensors, which is not there"),
        ("{}", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_an_index_whose_files_are_not_there_is_named(tmp_path: Path, index: str, problem: str) -> None:
    look(tmp_path, None, {"model.fc.weight": halves(2, 3)})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(NotACheckpointError, match=rf"model\.safetensors\.index\.json: {problem}"):
        survey(tmp_path)


def test_neither_torch_nor_vllm_is_imported() -> None:
    code = "import sys, aerie.quant.survey; assert not {'torch', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
