# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest

from aerie.benchmarks.prompts import render
from aerie.draft_models.measure import evaluate
from aerie.draft_models.offline import EngineOptions, Sampling, offline_engine

ANSWER_TOKENS, PROMPTS, DRAFT_TOKENS = 25, 6, 4

pytestmark = pytest.mark.engine


def test_acceptance_in_a_real_engine_is_the_one_the_models_were_made_for(pair: SimpleNamespace) -> None:
    chats = [[{"role": "user", "content": " ".join(["w3"] * words)}] for words in range(1, PROMPTS + 1)]
    prompts = [one.token_ids for one in render(pair.main, chats)]
    assert len(prompts[1]) == 4
    with offline_engine(EngineOptions(model=pair.main, draft=pair.draft, draft_tokens=DRAFT_TOKENS)) as engine:
        first = evaluate(engine, prompts, Sampling(max_tokens=64))
        again = evaluate(engine, prompts[:2], Sampling(max_tokens=64))
        ((answer,),) = engine.generate([prompts[0]], Sampling(max_tokens=64))
    steps = (ANSWER_TOKENS - 1) // 2
    assert first.pooled.histogram == (0, PROMPTS * steps, 0, 0, 0)
    assert first.pooled.drafted == PROMPTS * steps * DRAFT_TOKENS
    assert (first.pooled.length, first.generated) == (2.0, PROMPTS * ANSWER_TOKENS)
    assert again.pooled.steps == 2 * steps
    assert answer.token_ids == (*range(40, 64), 0)
    assert answer.finish_reason == "stop"
