# SPDX-License-Identifier: Apache-2.0
"""Random models whose greedy tokens roundings do not change: the logits of a random model are all near ties."""

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def make_decisive(model: PreTrainedModel) -> None:
    """Give each token of a Qwen3, dense or of experts, a likely successor that the layers blur."""
    vocabulary = model.config.vocab_size
    embeddings = model.model.embed_tokens.weight.mul_(10)
    model.lm_head.weight.copy_(0.06 * embeddings[torch.randperm(vocabulary)])
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(0.35)
        down = layer.mlp.experts.down_proj if hasattr(layer.mlp, "experts") else layer.mlp.down_proj.weight
        down.mul_(0.35)


@torch.no_grad()
def expected_logprobs(model: PreTrainedModel, prompt: list[int], tokens: list[int], apart: float) -> torch.Tensor:
    """Teacher-forced [steps, vocabulary], checked to have each step's two best further `apart` than that."""
    logits: torch.Tensor = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    best = expected.topk(2).values
    assert ((best[:, 0] - best[:, 1]) > apart).all(), "a near tie: the model is not decisive"
    return expected
