# SPDX-License-Identifier: Apache-2.0
"""A sparse main model as our trainer leaves it: vLLM serves it, with the answers that transformers gives."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from aerie.trainer.main.run import run

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = pytest.mark.engine

RECIPE: dict[str, Any] = {
    "shape": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "layers": 2,
        "experts": 8,
        "experts_per_token": 2,
        "moe_intermediate_size": 64,
    },
    "corpus": {"documents": 128, "validation_documents": 4},
    "optimisation": {"documents_per_step": 4, "learning_rate": 3e-3, "precision": "float32"},
}
PROMPT, TOKENS = list(range(100, 140)), 16
LOGPROB_TOLERANCE = 1e-3
"""Float32 on both sides; sums are taken in another order."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"output": str(folder / "main")}))
    return run(recipe)


@torch.no_grad()
def test_vllm_serves_the_model_that_was_trained(
    model: Path, open_engine: Callable[..., AbstractContextManager["LLM"]]
) -> None:
    from vllm import SamplingParams, TokensPrompt

    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=1)
    with open_engine(model) as llm:
        (request,) = llm.generate([TokensPrompt(prompt_token_ids=PROMPT)], greedy, use_tqdm=False)
    (answer,) = request.outputs
    tokens = list(answer.token_ids)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    logits = reference(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1]
    best = logits.log_softmax(-1).max(-1)
    assert tokens == best.indices.tolist()
    steps: Any = answer.logprobs  # vLLM's type allows a flat form too, which it gives on request only
    served = [step[token].logprob for token, step in zip(tokens, steps, strict=True)]
    assert served == pytest.approx(best.values.tolist(), abs=LOGPROB_TOLERANCE)
