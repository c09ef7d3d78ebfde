# SPDX-License-Identifier: Apache-2.0
"""The gated Eagle-3 head as vLLM serves it. Read against vLLM 0.32.0 (runner V1) and 0.33.0 (runner V2).

What the two runners demand:
* V1 (CPU; `v1/spec_decode/llm_base_proposer.py`): an instance of a whitelisted class, hence the base class.
* V2 (CUDA; `v1/worker/gpu/spec_decode`): `combine_hidden_states`, `compute_logits`, `.model.embed_tokens`, `.lm_head`,
  `forward(input_ids, positions, hidden_states, inputs_embeds) -> (normed, next hidden)`.
* Both: `has_own_lm_head` and `has_own_embed_tokens`, set by the base class while it loads the weights.

Shape suffixes: T tokens, H hidden size, D query heads of this rank x head_dim, A aux states x hidden size.
"""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedConfig
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
from vllm.model_executor.models.llama_eagle3 import LlamaModel as PlainModel
from vllm.model_executor.models.utils import AutoWeightsLoader, get_draft_quant_config, maybe_prefix

from aerie.draft_models.contract import DraftConfig


def _draft_config(vllm_config: VllmConfig) -> PreTrainedConfig:
    if vllm_config.speculative_config is None:
        raise ValueError("a gated Eagle-3 head is a draft: name it in --speculative-config, not as the model")
    return vllm_config.speculative_config.draft_model_config.hf_config


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
        output_TD = self.attn(query_TD, key, value)
        gate = torch.sigmoid(self.g_proj(x_T2H))
        if self.elementwise:
            gated_TD = output_TD * gate
        else:
            gated_TD = (output_TD.unflatten(-1, (self.num_heads, self.head_dim)) * gate.unsqueeze(-1)).flatten(-2)
        output_TH: torch.Tensor = self.o_proj(gated_TD)
        return output_TH


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

    def forward(
        self, positions_T: torch.Tensor, embeds_TH: torch.Tensor, hidden_TH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The MLP's output and the residual it is still to be added to, both [T, H]."""
        normed_TH = self.hidden_norm(hidden_TH)
        residual_TH = normed_TH if self.norm_before_residual else hidden_TH
        x_T2H = torch.cat([self.input_layernorm(embeds_TH), normed_TH], dim=-1)
        attended_TH = self.self_attn(positions_T, x_T2H)
        attended_TH, residual_TH = self.post_attention_layernorm(attended_TH, residual_TH)
        return self.mlp(attended_TH), residual_TH


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1, "hidden_states": 0, "input_embeds": 0})
class GatedModel(nn.Module):
    """Everything of the head but lm_head; attribute names are those the base class and the runners read."""

    use_aux_hidden_state = True
    norm_before_fc = False
    hf_to_vllm_mapper = PlainModel.hf_to_vllm_mapper

    def __init__(self, *, vllm_config: VllmConfig, start_layer_id: int, prefix: str = "") -> None:
        super().__init__()
        hf_config = _draft_config(vllm_config)
        config = DraftConfig.from_hf(hf_config.to_dict())
        quant_config = get_draft_quant_config(vllm_config)
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "embed_tokens")
        )
        # Numbered after the target's layers: the KV caches of both live in one table, by name.
        layer_prefix = maybe_prefix(prefix, f"layers.{start_layer_id}")
        cache_config = get_current_vllm_config().cache_config
        self.layers = nn.ModuleList([GatedDecoderLayer(config, hf_config, cache_config, quant_config, layer_prefix)])
        self.num_aux_hidden_states = len(config.aux_hidden_state_layer_ids)
        self.fc_norm: nn.ModuleList | None = None
        if config.fc_norm:
            norms = [
                RMSNorm(config.target_hidden_size, eps=config.rms_norm_eps) for _ in config.aux_hidden_state_layer_ids
            ]
            self.fc_norm = nn.ModuleList(norms)
        self.fc_input_size = config.target_hidden_size * self.num_aux_hidden_states
        self.fc = ReplicatedLinear(
            self.fc_input_size,
            config.hidden_size,
            bias=False,
            params_dtype=torch.get_default_dtype(),
            quant_config=quant_config,
            prefix=maybe_prefix(prefix, "fc"),
            return_bias=False,
        )
        self.norm_output = config.norm_output
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings [T, H]: the target's, shared after loading."""
        embeds_TH: torch.Tensor = self.embed_tokens(input_ids)
        return embeds_TH

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        input_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The state lm_head reads and the hidden state of the next draft step, both [T, H]."""
        if input_embeds is None:
            input_embeds = self.embed_input_ids(input_ids)
        output_TH, residual_TH = self.layers[0](positions, input_embeds, hidden_states)
        normed_TH, next_TH = self.norm(output_TH, residual_TH)
        return normed_TH, normed_TH if self.norm_output else next_TH

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the checkpoint's tensors, `midlayer` as layer 0, q/k/v and gate/up stacked."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded


class Eagle3GatedLlamaForCausalLM(Eagle3LlamaForCausalLM):
    """Plain Eagle-3 with our gated decoder; logits, fusion of aux states and loading are the base class's."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        # Not the base class's own: it would build the plain decoder and claim its KV cache's name.
        nn.Module.__init__(self)
        self.config = _draft_config(vllm_config)
        target_layers = vllm_config.model_config.get_total_num_hidden_layers()
        self.model = GatedModel(  # type: ignore[assignment]  # the base class declares the plain decoder
            vllm_config=vllm_config, start_layer_id=target_layers, prefix=maybe_prefix(prefix, "model")
        )
        draft_vocab_size = self.config.draft_vocab_size
        self.lm_head = ParallelLMHead(
            draft_vocab_size,
            self.config.hidden_size,
            quant_config=get_draft_quant_config(vllm_config),
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        self.logits_processor = LogitsProcessor(draft_vocab_size)
        self.draft_id_to_target_id = None  # type: ignore[assignment]  # as the base class does, undeclared
        if draft_vocab_size != vllm_config.model_config.get_vocab_size():
            offsets = torch.zeros(draft_vocab_size, dtype=torch.long)
            self.draft_id_to_target_id = nn.Parameter(offsets, requires_grad=False)
        self.use_parallel_drafting = False


class Eagle3GatedQwen3ForCausalLM(Eagle3GatedLlamaForCausalLM):
    """The same with Qwen3's attention; the architecture's name is what says so (`DraftConfig.qk_norm`)."""
