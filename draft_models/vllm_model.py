# SPDX-License-Identifier: Apache-2.0
"""The gated Eagle-3 head as vLLM serves it. Read against vLLM 0.32.0 (runner V1) and 0.33.0 (runner V2).

What the two runners demand:
* V1 (CPU; `v1/spec_decode/llm_base_proposer.py`): an instance of a whitelisted class, hence the base class.
* V2 (CUDA; `v1/worker/gpu/spec_decode`): `combine_hidden_states`, `compute_logits`, `.model.embed_tokens`, `.lm_head`,
  `forward(input_ids, positions, hidden_states, inputs_embeds) -> (normed, next hidden)`.
* Both: `has_own_lm_head` and `has_own_embed_tokens`, set by the base class while it loads the weights.

Shape suffixes: T tokens, H hidden size, W target vocabulary, V draft vocabulary.
"""

import logging
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedConfig
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
from vllm.model_executor.models.llama_eagle3 import LlamaModel as PlainModel
from vllm.model_executor.models.utils import AutoWeightsLoader, get_draft_quant_config, maybe_prefix

from aerie.draft_models.contract import DraftConfig
from aerie.draft_models.draft_kernels import PARTS, Part, ours, plain_weight
from aerie.draft_models.vllm_layer import GatedDecoderLayer
from aerie.kernels.draft_head.api import draft_tokens

# A child of vLLM's logger, for that is the one vLLM gives a handler in its worker processes.
logger = logging.getLogger("vllm.aerie.kernels")


def _draft_config(vllm_config: VllmConfig) -> PreTrainedConfig:
    if vllm_config.speculative_config is None:
        raise ValueError("a gated Eagle-3 head is a draft: name it in --speculative-config, not as the model")
    return vllm_config.speculative_config.draft_model_config.hf_config


def _served_by(part: Part) -> tuple[str, str]:
    """Whose operator computes a part of a step, and why, for the log."""
    by_us, why = ours(part)
    return "our operator, where its weights are neither quantised nor sharded" if by_us else "vLLM's layers", why


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
        # Asked here, since the runner puts the target's table in place of ours after loading.
        table_WH = plain_weight(self.embed_tokens) if self.layers[0].prologue_is_ours else None
        if input_embeds is None and table_WH is not None:
            output_TH, residual_TH = self.layers[0](positions, input_ids, table_WH, hidden_states)
        else:
            if input_embeds is None:
                input_embeds = self.embed_input_ids(input_ids)
            output_TH, residual_TH = self.layers[0](positions, None, input_embeds, hidden_states)
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
        self.head_is_ours = ours("head")[0]
        for part in PARTS:
            logger.info("%s: draft %s by %s (%s)", type(self).__name__, part, *_served_by(part))

    def get_top_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The target's ids of the largest logits, [T]; asked for with `use_local_argmax_reduction`."""
        weight_VH = plain_weight(self.lm_head) if self.head_is_ours else None
        if weight_VH is None or weight_VH.dtype != hidden_states.dtype:
            # The base class shows type checkers another base than it has.
            tokens_T: torch.Tensor = super().get_top_tokens(hidden_states)  # type: ignore[misc]
            return tokens_T
        # Rows beyond the draft's vocabulary are vLLM's padding.
        return draft_tokens(hidden_states, weight_VH[: self.config.draft_vocab_size], self.draft_id_to_target_id)


class Eagle3GatedQwen3ForCausalLM(Eagle3GatedLlamaForCausalLM):
    """The same with Qwen3's attention; the architecture's name is what says so (`DraftConfig.qk_norm`)."""
