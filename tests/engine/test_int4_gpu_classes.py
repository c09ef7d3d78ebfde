# SPDX-License-Identifier: Apache-2.0
"""The classes that serve INT4 layers and experts on GPUs, forced on a CPU, in an engine that traces the model.

On a CPU their operators are plain PyTorch; all before and behind those is what a GPU runs: which layers they take, what
they make of what vLLM loaded, and the fake implementations by which Dynamo traces through.

Tolerance: activations are bfloat16, which moves log-probabilities by 0.007 in the mean, and by more where two experts
are all but equally likely; leaving out the experts of one layer moves them by 0.12. The two best tokens are always much
farther apart, so that the greedy tokens must be the reference's.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.engine.decisive import expected_logprobs, make_decisive
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from aerie.quant.dequantise import load_dequantised
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.quant.vllm_report import summary

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = [pytest.mark.engine, pytest.mark.skipif(torch.cuda.is_available(), reason="the classes are forced here")]
VOCAB, LAYERS, TOKENS, GROUP = 512, 4, 24, 64
PROMPT_LENGTHS = (3, 7, 12, 40)
MEAN_ERROR, NEAR_TIE = 0.02, 1.0
LINEAR = "AerieInt4GemmLinearKernel (aerie::int4_gemm, bfloat16, because AERIE_INT4_KERNEL=aerie)"
EXPERTS = "AerieInt4MoeExperts (aerie::int4_moe, bfloat16, because AERIE_INT4_KERNEL=aerie)"
OpenEngine = Callable[..., AbstractContextManager["LLM"]]


def decisive_model() -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[0],
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        tie_word_embeddings=False,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    model = Qwen3MoeForCausalLM(config)
    make_decisive(model)
    return model


def generate(llm: "LLM", prompts: list[list[int]], tokens: int) -> list[tuple[list[int], list[dict[int, float]]]]:
    """Of each prompt the greedy tokens, and the log-probabilities of each step's best."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=5)
    inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    completions = [request.outputs[0] for request in llm.generate(inputs, greedy, use_tqdm=False)]
    return [
        (list(one.token_ids), [{token: entry.logprob for token, entry in step.items()} for step in one.logprobs or ()])
        for one in completions
    ]


@pytest.mark.usefixtures("gpu_class")
def test_layers_and_experts_are_served_by_the_classes_for_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_engine: OpenEngine
) -> None:
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # Dynamo without a compiler behind it
    torch.manual_seed(0)
    decisive_model().bfloat16().save_pretrained(tmp_path / "main")
    quantise(tmp_path / "main", tmp_path / "int4", QuantRecipe(group_size=GROUP, ignore=(r"re:.*mlp\.gate$",)))
    prompts = [torch.randint(0, VOCAB, (length,)).tolist() for length in PROMPT_LENGTHS]
    options = {"dtype": "bfloat16", "max_model_len": 256, "skip_tokenizer_init": True, "enforce_eager": False}
    with open_engine(tmp_path / "int4", **options) as llm:
        (lines,) = llm.apply_model(summary)
        answers = generate(llm, prompts, TOKENS)
        with profile(activities=[ProfilerActivity.CPU]) as ran:
            generate(llm, prompts[:1], 1)
    served = dict(line.split(" serves ", 1) for line in lines)
    assert served[LINEAR].startswith("11 layers: model.layers.*.self_attn.qkv_proj (4)")
    assert served[EXPERTS] == "3 layers: model.layers.*.mlp.experts.routed_experts (3)"
    calls = {event.key: event.count for event in ran.key_averages()}
    # Compiled code calls the operators by name, eager code goes straight in; lm_head is outside the model's graph.
    assert calls["aerie::int4_gemm"] == 10
    assert calls["aerie::int4_moe"] == 3
    reference = load_dequantised(tmp_path / "int4")
    errors: list[float] = []
    for prompt, (tokens, logprobs) in zip(prompts, answers, strict=True):
        expected = expected_logprobs(reference, prompt, tokens, apart=NEAR_TIE)
        assert tokens == expected.argmax(-1).tolist()
        for step, found in enumerate(logprobs):
            errors += [abs(logprob - float(expected[step, token])) for token, logprob in found.items()]
    assert mean(errors) < MEAN_ERROR
