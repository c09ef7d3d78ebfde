# SPDX-License-Identifier: Apache-2.0
"""The table of docs/checkpoints.md: every layout of a main model that was tried, and whether a CPU loads it.

Each row was held against vLLM's loader and, where it loads, a forward pass; here only headers are read.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from aerie.quant.servable import refusal
from aerie.quant.survey import survey

DENSE = [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "self_attn.k_proj")]
DENSE += [f"model.layers.{i}.self_attn.v_proj" for i in range(2)]
DENSE += [f"model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("gate", "up", "down")]
EXPERTS = [
    f"model.layers.{i}.mlp.experts.{e}.{name}_proj"
    for i in range(2)
    for e in range(2)
    for name in ("gate", "up", "down")
]
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
AUTO: dict[str, Any] = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "data_type": "int",
    "block_name_to_quantize": "model.layers",
}


def compressed(form: str = "pack-quantized", ignore: tuple[str, ...] = ("lm_head",), **weights: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    scheme = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True, **weights}
    groups = {"group_0": {"targets": ["Linear"], "weights": scheme}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": list(ignore)}


def packed(layer: str, group: int = 32, kind: str = "gptq", bits: int = 4) -> dict[str, Any]:
    """A layer of 64 inputs and outputs."""
    words = 64 * bits // 32
    if kind == "compressed":
        return {
            f"{layer}.weight_packed": numpy.zeros((64, words), numpy.int32),
            f"{layer}.weight_scale": numpy.zeros((64, 64 // group), numpy.float16),
        }
    shape = (64, words) if kind == "awq" else (words, 64)
    return {
        f"{layer}.qweight": numpy.zeros(shape, numpy.int32),
        f"{layer}.scales": numpy.zeros((64 // group, 64), numpy.float16),
        f"{layer}.qzeros": numpy.zeros((64 // group, words), numpy.int32),
    }


def tensors(layers: list[str], plain: str = "", **how: Any) -> dict[str, Any]:  # noqa: ANN401 -- of `packed`
    """Packed layers, those with `plain` in their names in 16 bit."""
    found: dict[str, Any] = {"model.embed_tokens.weight": numpy.zeros((96, 64), numpy.float16)}
    for layer in layers:
        is_plain = bool(plain) and plain in layer
        found |= {f"{layer}.weight": numpy.zeros((64, 64), numpy.float16)} if is_plain else packed(layer, **how)
    return found


CT = {"kind": "compressed"}
LOADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "16 bit": ({}, {}),
    "gptq": (GPTQ, tensors(DENSE)),
    "gptq, asymmetric": ({**GPTQ, "sym": False}, tensors(DENSE)),
    "gptq, one scale an output": ({**GPTQ, "group_size": -1}, tensors(DENSE, group=64)),
    "gptq, experts": (GPTQ, tensors(EXPERTS)),
    "gptq, a layer left out by headers": (GPTQ, tensors(DENSE, plain="layers.1")),
    "gptq, a rule for parts": ({**GPTQ, "dynamic": {r"-:.*\.(q|k|v)_proj": {}}}, tensors(DENSE, plain="self_attn")),
    "gptq, a rule with groups": (
        {**GPTQ, "dynamic": {r"+:.*mlp\..*": {"group_size": 64}}, "group_size": 64},
        tensors(DENSE, group=64),
    ),
    "gptq, experts left out": (
        {**GPTQ, "dynamic": {r"-:.*layers\.1\.mlp\.experts\.\d+\..*": {}}},
        tensors(EXPERTS, plain="layers.1"),
    ),
    "awq": (AWQ, tensors(DENSE, kind="awq")),
    "awq, old names": (
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "zero_point": True},
        tensors(DENSE, kind="awq"),
    ),
    "awq, layers left out": (
        {**AWQ, "modules_to_not_convert": ["layers.1"]},
        tensors(DENSE, plain="layers.1", kind="awq"),
    ),
    "awq, experts": (AWQ, tensors(EXPERTS, kind="awq")),
    "auto-round": (AUTO, tensors(DENSE)),
    "auto-round, asymmetric": ({**AUTO, "sym": False}, tensors(DENSE)),
    "auto-round, awq": ({**AUTO, "packing_format": "auto_round:auto_awq"}, tensors(DENSE, kind="awq")),
    "auto-round, experts": (AUTO, tensors(EXPERTS)),
    "auto-round, a layer left out": (
        {**AUTO, "extra_config": {"model.layers.1.mlp": {"bits": 16}}},
        tensors(DENSE, plain="layers.1"),
    ),
    "compressed-tensors": (compressed(), tensors(DENSE, **CT)),
    "compressed-tensors, experts": (compressed(), tensors(EXPERTS, **CT)),
    "compressed-tensors, ignore": (compressed(ignore=("re:.*layers\\.1.*",)), tensors(DENSE, plain="layers.1", **CT)),
    "compressed-tensors, 8-bit integers": (compressed("int-quantized", num_bits=8), {}),
    "compressed-tensors, FP8": (compressed("float-quantized", num_bits=8, type="float"), {}),
}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "gptq, 8 bits": ({**GPTQ, "bits": 8}, tensors(DENSE, bits=8), "gptq weights of 8 bits are not served on a CPU"),
    "gptq, desc_act": ({**GPTQ, "desc_act": True}, tensors(DENSE), "desc_act reorders activations"),
    "gptq, a rule of 8 bits": (
        {**GPTQ, "dynamic": {r"+:.*down_proj": {"bits": 8}}},
        tensors(DENSE) | packed("model.layers.0.mlp.down_proj", bits=8),
        r"model\.layers\.\d\.mlp\.down_proj has 8 bits",
    ),
    "gptq, a part left out": (
        {**GPTQ, "dynamic": {"-:.*q_proj": {}}},
        tensors(DENSE, plain="q_proj"),
        r"k_proj is INT4 and model\.layers\.0\.self_attn\.q_proj in 16 bit",
    ),
    "gptq, a rule that the files do not follow": (
        {**GPTQ, "dynamic": {r"-:.*mlp\.": {}}},
        tensors(DENSE),
        "is INT4 in the files",
    ),
    "gptq, experts in 16 bit without a rule": (GPTQ, tensors(EXPERTS, plain="layers.1"), "is in 16 bit in the files"),
    "gptq, other groups": ({**GPTQ, "group_size": 64}, tensors(DENSE), "groups of 32 in the files and of 64"),
    "awq, gemv": ({**AWQ, "version": "gemv"}, tensors(DENSE, kind="awq"), "AWQ in the layout gemv"),
    "auto-round, 8 bits": ({**AUTO, "bits": 8}, tensors(DENSE, bits=8), "auto-round weights of 8 bits"),
    "auto-round, MXFP": ({**AUTO, "data_type": "mx_fp"}, {}, "data_type mx_fp"),
    "auto-round, its own packing": (
        {**AUTO, "packing_format": "auto_round"},
        tensors(DENSE),
        "packing_format auto_round",
    ),
    "compressed-tensors, 8 bits packed": (compressed(num_bits=8), {}, "packed weights of 8-bit int"),
    "compressed-tensors, NVFP4": (compressed("nvfp4-pack-quantized", type="float"), {}, "format nvfp4-pack-quantized"),
    "compressed-tensors, actorder": (compressed(actorder="group"), {}, "actorder group reorders"),
    "compressed-tensors, not ignored": (
        compressed(),
        tensors(DENSE, plain="layers.1", **CT),
        "is in 16 bit in the files",
    ),
    "compressed-tensors, ignored": (compressed(ignore=("re:.*mlp.*",)), tensors(DENSE, **CT), "is INT4 in the files"),
} | {
    name: ({"quant_method": name}, {}, f"quant_method {name} is not served on a CPU")
    for name in ("fp8", "bitsandbytes", "hqq", "aqlm", "quark", "torchao", "mxfp4", "modelopt", "fbgemm_fp8")
}


def look(folder: Path, scheme: dict[str, Any], held: dict[str, Any], on_cpu: bool = True) -> tuple[str, str] | None:
    save_file(held or {"empty": numpy.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": scheme} if scheme else {}))
    return refusal(survey(folder), on_cpu)


@pytest.mark.parametrize("name", LOADS)
def test_layouts_that_load(tmp_path: Path, name: str) -> None:
    assert look(tmp_path, *LOADS[name]) is None


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_refused_with_the_reason_and_a_fix(tmp_path: Path, name: str) -> None:
    scheme, held, reason = REFUSED[name]
    refused = look(tmp_path, scheme, held)
    assert refused is not None
    problem, fix = refused
    assert re.search(reason, problem)
    assert len(fix) > 10


@pytest.mark.parametrize(("file", "scheme"), [("quantize_config.json", GPTQ), ("quant_config.json", AWQ)])
def test_a_scheme_in_a_file_of_its_own_is_read(tmp_path: Path, file: str, scheme: dict[str, Any]) -> None:
    held = tensors(DENSE, kind="awq") if file == "quant_config.json" else tensors(DENSE)
    (tmp_path / file).write_text(json.dumps({name: value for name, value in scheme.items() if name != "quant_method"}))
    assert look(tmp_path, {}, held) is None
    found = survey(tmp_path)
    assert (found.method, found.legacy) == (scheme["quant_method"], True)
    assert {layer.group_size for layer in found.layers} == {None, 32}


@pytest.mark.parametrize("name", ["gptq, 8 bits", "fp8", "auto-round, 8 bits"])
def test_what_only_a_cpu_lacks_is_left_to_vllm_on_a_gpu(tmp_path: Path, name: str) -> None:
    assert look(tmp_path, *REFUSED[name][:2], on_cpu=False) is None
