# SPDX-License-Identifier: Apache-2.0
"""The gated head's one decoder layer in vLLM's layers, tensor-parallel. Read against vLLM 0.32.0 and 0.33.0.

Shape suffixes: T tokens, H hidden size, D query heads of this rank x head_dim, N query heads of this rank.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from vllm.config import CacheConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.models.llama import LlamaMLP

from aerie.draft_models.contract import DraftConfig
from aerie.draft_models.draft_kernels import ours, plain_weight
from aerie.kernels.attention_gate.api import gate_attention
from aerie.kernels.draft_prologue.api import draft_prologue


class GatedAttention(nn.Module):
    """Grouped-query attention over concat(embedding, hidden), its output gated before o_proj.

    y = (GQA(x Wq, x Wk, x Wv) * sigmoid(x Wg)) Wo, one gate per channel or per query head; with Qwen3's attention,
    queries and keys are normalised per head before they are rotated.
    """

    def __init__(
        self,
        config: DraftConfig,
        hf_config: PreTrainedConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.elementwise = config.gate == "elementwise"
        input_size = 2 * config.hidden_size
        self.qkv_proj = QKVParallelLinear(
            input_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        # Column parallel: each rank holds the gates of its own query heads, so gating needs no communication.
        self.g_proj = ColumnParallelLinear(
            input_size,
            config.gate_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.g_proj",
            return_bias=False,
        )
        self.gate_is_ours = self._keeps_gate_weight()
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
            return_bias=False,
        )
        self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None
        ranks = get_tensor_model_parallel_world_size()
        self.num_heads = config.num_attention_heads // ranks
        self.num_kv_heads = max(1, config.num_key_value_heads // ranks)
        self.rotary_emb = get_rope(
            config.head_dim,
            # vLLM raises the draft's own limit to the target's context length.
            max_position=hf_config.max_position_embeddings,
            rope_parameters=hf_config.rope_parameters,
            is_neox_style=True,
        )
        self.attn = Attention(
            self.num_heads,
            config.head_dim,
            config.head_dim**-0.5,
            num_kv_heads=self.num_kv_heads,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )

    def _keeps_gate_weight(self) -> bool:
        """Whether our operator is to gate, and can; if so, have vLLM leave it the weight."""
        by_us = ours("gate")[0] and plain_weight(self.g_proj) is not None
        # On a CPU vLLM would pack the weight for its own product and keep no other; nothing reads this elsewhere.
        self.g_proj._cpu_skip_gemm_dispatch = by_us  # type: ignore[assignment]  # as vLLM does, undeclared
        return by_us

    def forward(self, positions_T: torch.Tensor, x_T2H: torch.Tensor) -> torch.Tensor:
        """[T, 2H] to [T, H]."""
        qkv, _ = self.qkv_proj(x_T2H)
        query_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        query_TD, key, value = qkv.split([query_size, kv_size, kv_size], dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            # Per head, so every rank of a tensor-parallel group normalises its own.
            query_TD = self.q_norm(query_TD.unflatten(-1, (-1, self.head_dim))).flatten(-2)
            key = self.k_norm(key.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        query_TD, key = self.rotary_emb(positions_T, query_TD, key)
        output_TH: torch.Tensor = self.o_proj(self._gated(x_T2H, self.attn(query_TD, key, value)))
        return output_TH

    def _gated(self, x_T2H: torch.Tensor, output_TD: torch.Tensor) -> torch.Tensor:
        if self.gate_is_ours:
            gate_weight: Any = self.g_proj.weight
            return gate_attention(x_T2H, gate_weight, output_TD)
        gate = torch.sigmoid(self.g_proj(x_T2H))
        if self.elementwise:
            return output_TD * gate
        heads_TND: torch.Tensor = output_TD.unflatten(-1, (self.num_heads, self.head_dim))
        return (heads_TND * gate.unsqueeze(-1)).flatten(-2)


class GatedDecoderLayer(nn.Module):
    """The head's one layer: normed embedding and normed hidden side by side, gated attention, MLP."""

    def __init__(
        self,
        config: DraftConfig,
        hf_config: PreTrainedConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
        self.prologue_is_ours = ours("prologue")[0]
        self.self_attn = GatedAttention(config, hf_config, cache_config, quant_config, f"{prefix}.self_attn")
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config=quant_config,
            prefix=f"{prefix}.mlp",
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def prologue(
        self, ids_T: torch.Tensor | None, embeds: torch.Tensor, hidden_TH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The attention's input [T, 2H] and the residual [T, H]; `embeds` is the table that ids are rows of, if any."""
        if self.prologue_is_ours:
            embed_norm, hidden_norm = self.input_layernorm, self.hidden_norm
            weights, eps = (embed_norm.weight, hidden_norm.weight), hidden_norm.variance_epsilon
            return draft_prologue(
                ids_T, embeds, hidden_TH, *weights, eps=eps, norm_before_residual=self.norm_before_residual
            )
        normed_TH = self.hidden_norm(hidden_TH)
        residual_TH = normed_TH if self.norm_before_residual else hidden_TH
        return torch.cat([self.input_layernorm(embeds), normed_TH], dim=-1), residual_TH

    def forward(
        self, positions_T: torch.Tensor, ids_T: torch.Tensor | None, embeds: torch.Tensor, hidden_TH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The MLP's output and the residual it is still to be added to, both [T, H]."""
        x_T2H, residual_TH = self.prologue(ids_T, embeds, hidden_TH)
        attended_TH = self.self_attn(positions_T, x_T2H)
        attended_TH, residual_TH = self.post_attention_layernorm(attended_TH, residual_TH)
        return self.mlp(attended_TH), residual_TH
