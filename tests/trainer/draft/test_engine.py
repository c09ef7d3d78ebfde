# SPDX-License-Identifier: Apache-2.0
"""The path of the shipped draft: answers from vLLM, states from the INT4 target dequantised in process."""

from pathlib import Path

import pytest

from aerie.draft_models.checkpoint import read_draft, verify_draft
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.trainer.draft.prompts import load_prompts
from aerie.trainer.draft.recipe import DraftRecipe
from aerie.trainer.draft.regenerate import regenerate
from aerie.trainer.draft.run import run_recipe

# vLLM and torch warn when an engine starts; that is theirs to mend.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def int4(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4") / "target"
    quantise(target, folder, QuantRecipe(group_size=32))
    return folder


def test_a_head_for_an_int4_target(recipe: DraftRecipe, int4: Path, tmp_path: Path) -> None:
    ours = recipe.model_copy(update={"target": int4, "output": tmp_path / "draft", "work": tmp_path / "work"})
    output = run_recipe(ours)
    assert verify_draft(output, int4) == ()
    config, _ = read_draft(output)
    assert config.target is not None
    assert config.target.quantisation == "compressed-tensors"


@pytest.mark.engine
def test_vllm_and_transformers_answer_alike(recipe: DraftRecipe, int4: Path, tmp_path: Path) -> None:
    chats = load_prompts(recipe.validation)
    answers = [
        regenerate(int4, chats, recipe.answers.model_copy(update={"engine": engine}), 0.0, tmp_path / engine)
        for engine in ("vllm", "transformers")
    ]
    assert [one.prompt_ids for one in answers[0]] == [one.prompt_ids for one in answers[1]]
    tokens = [
        token == other
        for ours, theirs in zip(*answers, strict=True)
        for token, other in zip(ours.answer_ids, theirs.answer_ids, strict=False)
    ]
    # A near-tie may fall either way in another order of additions, and what follows it differs.
    assert sum(tokens) >= 0.8 * len(tokens)
