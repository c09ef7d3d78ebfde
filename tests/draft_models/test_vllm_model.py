# SPDX-License-Identifier: Apache-2.0
"""What vLLM's two model runners demand of a draft's class; the CPU uses V1, CUDA V2, and each run sees only one."""

import inspect

import pytest
from torch import nn

from aerie.draft_models import vllm_model
from aerie.draft_models.contract import GATED_ARCHITECTURES, PLAIN_ARCHITECTURES

HEADS = [getattr(vllm_model, name) for name in GATED_ARCHITECTURES]


@pytest.mark.parametrize("head", HEADS)
def test_runner_v1_demands_an_instance_of_a_class_it_knows(head: type[nn.Module]) -> None:
    from vllm.v1.spec_decode import llm_base_proposer

    assert issubclass(head, vars(llm_base_proposer)["Eagle3LlamaForCausalLM"])


@pytest.mark.parametrize("head", HEADS)
def test_runner_v2_demands_these_methods_and_this_forward(head: type[nn.Module]) -> None:
    for name in ("combine_hidden_states", "compute_logits", "get_top_tokens", "embed_input_ids", "load_weights"):
        assert callable(getattr(head, name))
    names = list(inspect.signature(head.forward).parameters)
    assert names == ["self", "input_ids", "positions", "hidden_states", "inputs_embeds"]


@pytest.mark.parametrize("head", HEADS)
def test_both_runners_share_weights_through_flags_of_the_eagle3_interface(head: type[nn.Module]) -> None:
    from vllm.model_executor.models.interfaces import supports_eagle3

    for flag in ("has_own_lm_head", "has_own_embed_tokens"):
        assert getattr(head, flag) is False
    assert supports_eagle3(head)


def test_the_decoder_carries_what_the_base_class_reads() -> None:
    # Eagle3LlamaForCausalLM.combine_hidden_states and load_weights read these of `self.model`.
    assert vllm_model.GatedModel.use_aux_hidden_state is True
    assert vllm_model.GatedModel.norm_before_fc is False


def test_unmodified_vllm_knows_the_plain_architectures() -> None:
    from vllm import ModelRegistry

    assert set(PLAIN_ARCHITECTURES) <= set(ModelRegistry.get_supported_archs())
