# SPDX-License-Identifier: Apache-2.0
"""What vLLM's two model runners demand of a draft's class; the CPU uses V1, CUDA V2, and each run sees only one."""

import inspect

from aerie.draft_models import vllm_model
from aerie.draft_models.contract import PLAIN_ARCHITECTURES

HEAD = vllm_model.Eagle3GatedLlamaForCausalLM


def test_runner_v1_demands_an_instance_of_a_class_it_knows() -> None:
    from vllm.v1.spec_decode import llm_base_proposer

    assert issubclass(HEAD, vars(llm_base_proposer)["Eagle3LlamaForCausalLM"])


def test_runner_v2_demands_these_methods_and_this_forward() -> None:
    for name in ("combine_hidden_states", "compute_logits", "get_top_tokens", "embed_input_ids", "load_weights"):
        assert callable(getattr(HEAD, name))
    names = list(inspect.signature(HEAD.forward).parameters)
    assert names == ["self", "input_ids", "positions", "hidden_states", "inputs_embeds"]


def test_both_runners_share_weights_through_flags_of_the_eagle3_interface() -> None:
    from vllm.model_executor.models.interfaces import supports_eagle3

    for flag in ("has_own_lm_head", "has_own_embed_tokens"):
        assert getattr(HEAD, flag) is False
    assert supports_eagle3(HEAD)


def test_the_decoder_carries_what_the_base_class_reads() -> None:
    # Eagle3LlamaForCausalLM.combine_hidden_states and load_weights read these of `self.model`.
    assert vllm_model.GatedModel.use_aux_hidden_state is True
    assert vllm_model.GatedModel.norm_before_fc is False


def test_unmodified_vllm_knows_the_plain_architectures() -> None:
    from vllm import ModelRegistry

    assert set(PLAIN_ARCHITECTURES) <= set(ModelRegistry.get_supported_archs())
