# SPDX-License-Identifier: Apache-2.0
"""Which main models hand out the states that an EAGLE-3 head reads."""

import pytest

from aerie.draft_models.targets import supports_eagle3


@pytest.mark.parametrize(
    ("architecture", "supported"),
    [
        ("Qwen3ForCausalLM", True),
        ("MistralForCausalLM", True),  # by inheritance, over two files
        ("Olmo2ForCausalLM", True),  # through the backend for models of transformers
        ("Gemma3ForConditionalGeneration", False),
        ("GemmaForCausalLM", False),
        ("NobodysForCausalLM", None),
    ],
)
def test_the_source_of_vllm_tells_which_targets_hand_out_states(architecture: str, supported: bool | None) -> None:
    assert supports_eagle3(architecture) is supported


def test_what_the_source_tells_is_what_the_classes_say() -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models import interfaces

    for architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM"):
        loaded = ModelRegistry.models[architecture].load_model_cls()
        assert supports_eagle3(architecture) is interfaces.supports_eagle3(loaded)
