# SPDX-License-Identifier: Apache-2.0
"""No bit of an answer depends on drafts, on the number of threads, or on how many requests share a step.

Logprobs are compared, not only tokens: a random model is seldom so undecided that another order of summing shows in its
text, while any changed bit of its attention shows in its logits.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from aerie.draft_models.contract import GateKind

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = pytest.mark.engine

LENGTHS, NEW_TOKENS = (7, 90, 300, 410), 24

Bits = list[list[tuple[int, float]]]
"""By request and token: the token and its logprob."""


def greedy(llm: "LLM", prompts: list[list[int]]) -> Bits:
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False, logprobs=0)
    inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    answers = [request.outputs[0] for request in llm.generate(inputs, parameters, use_tqdm=False)]
    return [
        [
            (token, (step or {})[token].logprob)
            for token, step in zip(answer.token_ids, answer.logprobs or (), strict=True)
        ]
        for answer in answers
    ]


def answers(
    engine: AbstractContextManager["LLM"], asked: list[tuple[AbstractContextManager[None], list[list[int]]]]
) -> tuple[list[Bits], dict[str, float]]:
    """Those to each list of prompts within its block, and the engine's counters. The engine is gone afterwards."""
    with engine as llm:
        bits = []
        for block, prompts in asked:
            with block:
                bits.append(greedy(llm, prompts))
        return bits, {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_answers_are_the_same_to_the_bit(
    tiny_target: Path,
    tiny_drafts: Mapping[GateKind, Path],
    open_engine: Callable[..., AbstractContextManager["LLM"]],
    threads: Callable[[int], AbstractContextManager[None]],
    dtype: str,
) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(256, (length,), generator=generator).tolist() for length in LENGTHS]

    def asked() -> list[tuple[AbstractContextManager[None], list[list[int]]]]:
        return [(threads(count), some) for count in (1, 2) for some in (prompts, prompts[-1:])]

    undrafted, _ = answers(open_engine(tiny_target, dtype=dtype), asked())
    drafted, counters = answers(open_engine(tiny_target, tiny_drafts["elementwise"], dtype=dtype), asked())
    together = undrafted[0]
    assert undrafted == [together, together[-1:]] * 2
    assert drafted == undrafted
    # Otherwise it would prove little: drafts must have been accepted, and rejected.
    accepted, proposed = (counters[f"vllm:spec_decode_num_{kind}_tokens"] for kind in ("accepted", "draft"))
    assert 0.1 < accepted / proposed < 0.9
