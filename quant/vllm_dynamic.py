# SPDX-License-Identifier: Apache-2.0
"""GPTQModel's `dynamic` rules, which give layers a scheme of their own or leave them in 16 bit.

vLLM holds them against its own names, but they are written for the checkpoint's. So where no rule matches a fused layer
or the experts of a layer by vLLM's name, those that match all of its parts hold. Read against vLLM 0.32.0 and 0.33.0.
"""

import copy
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.quantization.utils.gptq_utils import get_dynamic_override, override_config
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

from aerie.quant.errors import QuantError


def by_rules(config: AutoGPTQConfig, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
    """How a layer is served by a configuration with rules.

    Raises:
        QuantError: parts that vLLM computes as one have different rules.
    """
    rule = _rule(config, layer, prefix)
    if rule is False:
        return _plain(layer)
    scheme = copy.copy(config)
    if rule is not None:
        scheme.dynamic = {"": rule}
        override_config(scheme, prefix)
    scheme.dynamic = {}
    return scheme.get_quant_method(layer, prefix)


def _rule(config: AutoGPTQConfig, layer: torch.nn.Module, prefix: str) -> Any:  # noqa: ANN401 -- as vLLM returns it
    parent, _, last = prefix.rpartition(".")
    parts = [f"{parent}.{part}" for part in config.packed_modules_mapping.get(last, ())]
    if isinstance(layer, RoutedExperts):
        names = (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name)
        parts = [f"{prefix}.0.{name}" for name in names]
    rule = get_dynamic_override(config, prefix)
    if rule is not None or not parts:
        return rule
    rules: list[Any] = [get_dynamic_override(config, part) for part in parts]
    if any(rule != rules[0] for rule in rules):
        raise QuantError(f"{prefix}: `dynamic` gives its parts different schemes, and vLLM computes them as one")
    return rules[0]


def _plain(layer: torch.nn.Module) -> QuantizeMethodBase | None:
    if isinstance(layer, RoutedExperts):
        return UnquantizedFusedMoEMethod(layer.moe_config)
    if isinstance(layer, ParallelLMHead):
        return UnquantizedEmbeddingMethod()
    return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None
