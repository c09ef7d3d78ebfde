# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest

from aerie.benchmarks.acceptance.evaluate import evaluate
from aerie.benchmarks.engine import EngineOptions, Sampling, offline_engine
from aerie.benchmarks.prompts import render

ANSWER_TOKENS, PROMPTS, DRAFT_TOKENS = 25, 6, 4

pytestmark = pytest.mark.engine


def test_acceptance_in_a_real_engine_is_the_one_the_models_were_made_for(pair: SimpleNamespace) -> None:
    chats = [[{"role": "user", "content": " ".join(["w3"] * words)}] for words in range(1, PROMPTS + 1)]
    prompts = render(pair.main, chats)
    assert len(prompts[1].token_ids) == 4
    with offline_engine(EngineOptions(model=pair.main, draft=pair.draft, draft_tokens=DRAFT_TOKENS)) as engine:
        first = evaluate(engine, prompts, max_tokens=64)
        again = evaluate(engine, prompts[:2], max_tokens=64)
        ((answer,),) = engine.generate([prompts[0].token_ids], Sampling(max_tokens=64))
    steps = (ANSWER_TOKENS - 1) // 2
    assert first.pooled.histogram == (0, PROMPTS * steps, 0, 0, 0)
    assert first.pooled.drafted == PROMPTS * steps * DRAFT_TOKENS
    assert (first.pooled.length, first.generated) == (2.0, PROMPTS * ANSWER_TOKENS)
    assert again.pooled.steps == 2 * steps
    assert answer.token_ids == (*range(40, 64), 0)
    assert answer.finish_reason == "stop"
