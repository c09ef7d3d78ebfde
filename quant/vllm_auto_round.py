# SPDX-License-Identifier: Apache-2.0
"""AutoRound's INT4 checkpoints (`quant_method: auto-round`), whose layers lie on disk as GPTQ's or AWQ's do.

vLLM's class for them (`inc`) knows, on a CPU, neither float32 activations nor zero points in GPTQ's packing, and takes
experts for 16-bit ones. So 4-bit layers go to our GPTQ and AWQ classes there. Read against vLLM 0.32.0 and 0.33.0.
"""

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.quantization.inc import INCConfig
from vllm.model_executor.layers.quantization.inc.config_parser import INCLayerConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.transformers_utils.config import get_safetensors_params_metadata

from aerie.quant.errors import QuantError
from aerie.quant.kernel_choice import kernel_choice
from aerie.quant.vllm_config import AerieAWQConfig, AerieGPTQConfig, Method, on_cpu, with_float32


class AerieAutoRoundConfig(INCConfig):
    """vLLM's, but for 4-bit integers on a CPU."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Types of activations."""
        return with_float32(super().get_supported_act_dtypes())

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:  # noqa: ANN401 -- vLLM's
        """Take what the files hold in 16 bit for that, as vLLM does of GPTQ: routers need not be in `extra_config`."""
        tensors = get_safetensors_params_metadata(model_name, revision=revision)
        layers = [name.removesuffix(".weight") for name, tensor in tensors.items() if len(tensor.get("shape", ())) == 2]
        plain = {layer: {"bits": 16} for layer in layers if f"{layer}.weight" in tensors}
        self.extra_config = plain | (self.extra_config or {})

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Method:
        """How vLLM is to serve a layer."""
        layer_config = self._layer_config(layer, prefix)
        group_size = layer_config.group_size
        ours = on_cpu() and kernel_choice() != "vllm" and layer_config.is_wna16_int and layer_config.bits == 4
        if not ours or not isinstance(group_size, int):
            method: Method = super().get_quant_method(layer, prefix)
            return method
        head = isinstance(layer, ParallelLMHead)
        config: QuantizationConfig
        if layer_config.is_gptq:
            config = AerieGPTQConfig(4, group_size, False, layer_config.sym, head, {}, {})
        else:  # zero points are there even where all are 8
            config = AerieAWQConfig(4, group_size, True, head, [], {})
        config.packed_modules_mapping = self.packed_modules_mapping
        return config.get_quant_method(layer, prefix)

    def _layer_config(self, layer: torch.nn.Module, prefix: str) -> INCLayerConfig:
        if not isinstance(layer, RoutedExperts):
            return self.config_parser.resolve(layer, prefix)
        names = (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name)
        resolved = {self.config_parser.resolve(layer, f"{prefix}.0.{name}") for name in names}
        if len(resolved) > 1:
            raise QuantError(f"{prefix}: extra_config gives its experts' projections different schemes")
        return resolved.pop()


def register() -> None:
    """Take vLLM's name; doing it again changes nothing."""
    register_quantization_config("inc")(AerieAutoRoundConfig)
