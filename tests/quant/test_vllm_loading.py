# SPDX-License-Identifier: Apache-2.0
"""vLLM's own loaders on what we write: which modules they take for quantised. tests/engine has what those compute."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from vllm.model_executor.layers.linear import ReplicatedLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer
from vllm.model_executor.layers.quantization.utils.gptq_utils import get_dynamic_override
from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

from aerie.quant.formats import FORMATS
from aerie.quant.formats.base import Format, Selection
from aerie.quant.methods.rtn import round_to_nearest
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.quant.weight import Int4Weight, Scheme

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the kernel is for CPUs")
INPUTS, VOCAB = 128, 128
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "mlp_only_layers": [0]}
SaveModel = Callable[..., Path]
Name = Literal["compressed-tensors", "gptq", "awq"]


def vllm_config(name: str, quantization: dict[str, Any]) -> QuantizationConfig:
    config: QuantizationConfig = get_quantization_config(name).from_config(quantization)
    config.packed_modules_mapping = PACKED
    return config


def load(module: torch.nn.Module, one: Format, weight: Int4Weight) -> None:
    for name, tensor in one.tensors("layer", weight).items():
        parameter = getattr(module, name.removeprefix("layer."))
        parameter.weight_loader(parameter, tensor)


@pytest.mark.parametrize("name", FORMATS)
def test_an_lm_head_is_refused_where_vllm_pads_its_columns(vllm_alone: None, name: str) -> None:
    one = FORMATS[name]
    scheme, outputs = Scheme(32, True, one.scale_dtype), VOCAB - 32
    config = vllm_config(name, one.quantization_config(scheme, Selection(("lm_head",), (), ())))
    head = ParallelLMHead(outputs, INPUTS, prefix="lm_head", quant_config=config, params_dtype=torch.float32)
    weight = round_to_nearest(torch.randn(outputs, INPUTS), scheme, "absmax")
    if one.unsupported(scheme, "lm_head", outputs, INPUTS) is None:
        load(head, one, weight)
    else:
        with pytest.raises(RuntimeError, match="must match"):
            load(head, one, weight)


def quantised(config: QuantizationConfig, prefix: str) -> bool:
    """Whether vLLM makes a module of that name a quantised one."""
    kind = ParallelLMHead if prefix == "lm_head" else ReplicatedLinear
    module = object.__new__(kind)
    torch.nn.Module.__init__(module)
    method = config.get_quant_method(module, prefix)
    return method is not None and not isinstance(method, UnquantizedLinearMethod | UnquantizedEmbeddingMethod)


def experts_quantised(config: Any, name: str, prefix: str) -> bool:  # noqa: ANN401 (each format's class has its own)
    """The question each loader asks of a layer's experts; making them needs a CPU with AMX."""
    if name == "compressed-tensors":
        return not should_ignore_layer(f"{prefix}.0.gate_proj", config.ignore, PACKED)
    if name == "gptq":
        return get_dynamic_override(config, prefix) is not False
    return not is_layer_skipped(prefix, config.modules_to_not_convert, match_mode="substring")


@pytest.mark.parametrize("head", [False, True], ids=["head-16-bit", "head-4-bit"])
@pytest.mark.parametrize("name", FORMATS)
def test_vllm_finds_what_stays_16_bit(
    vllm_alone: None, save_model: SaveModel, tmp_path: Path, name: Name, head: bool
) -> None:
    model = save_model(mixture=True, tie_word_embeddings=False, vocab_size=VOCAB, num_hidden_layers=3, **MIXTURE)
    ignore = (r"re:.*\.1\.self_attn\.[qkv]_proj", r"re:.*\.2\.mlp\.experts\.", "model.layers.0.mlp.down_proj")
    # Routers are left out by no pattern here, and must be named all the same.
    recipe = QuantRecipe(format=name, group_size=32, ignore=ignore if head else (*ignore, "lm_head"))
    quantise(model, tmp_path / "int4", recipe)
    config = vllm_config(name, json.loads((tmp_path / "int4/config.json").read_text())["quantization_config"])
    config.maybe_update_config(str(tmp_path / "int4"))
    layers = "model.layers"
    for prefix in ("0.self_attn.qkv_proj", "1.self_attn.o_proj", "0.mlp.gate_up_proj"):
        assert quantised(config, f"{layers}.{prefix}"), prefix
    for prefix in ("1.self_attn.qkv_proj", "0.mlp.down_proj", "1.mlp.gate", "2.mlp.gate"):
        assert not quantised(config, f"{layers}.{prefix}"), prefix
    assert quantised(config, "lm_head") is head
    assert experts_quantised(config, name, f"{layers}.1.mlp.experts")
    assert not experts_quantised(config, name, f"{layers}.2.mlp.experts")
