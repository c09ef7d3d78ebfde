# SPDX-License-Identifier: Apache-2.0
"""States from vLLM against states from transformers, on the same documents.

Tolerances, relative to the norm of all states: a 16-bit target runs in float32 on both sides, so that only the order of
additions and the rounding to bf16 differ (2^-9); the INT4 kernel rounds each layer's activations to bf16, which seven
layers of random weights amplify to a few hundredths. Choices may then differ where the two best tokens nearly tie.
"""

from pathlib import Path

import pytest
import torch

from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.trainer.draft.capture import capture
from aerie.trainer.draft.recipe import Capture
from aerie.trainer.draft.regenerate import Answered
from aerie.trainer.draft.shards import Document, read_shard
from aerie.trainer.draft.support import check_served
from aerie.trainer.recipe import RecipeError

# vLLM and torch warn when an engine starts; that is theirs to mend.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]
LENGTHS = (5, 126, 17, 120, 63, 64, 90, 33)


def _capture(target: Path, engine: str, folder: Path) -> list[Document]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(0, 288, (length,), generator=generator).tolist() for length in LENGTHS]
    documents = [Answered(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in drawn]
    folder.mkdir()
    settings = Capture.model_validate({"engine": engine, "batch_tokens": 128, "shard_tokens": 200})
    capture(target, documents, settings, folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return [one for path in sorted(folder.glob("hs_*")) for one in read_shard(path)]


@pytest.mark.parametrize(
    ("int4", "tolerance", "agreeing"), [(False, 2**-8, 1.0), (True, 0.05, 0.9)], ids=["16-bit", "int4"]
)
def test_both_engines_capture_the_same(
    target: Path, tmp_path: Path, int4: bool, tolerance: float, agreeing: float
) -> None:
    model = target
    if int4:
        model = tmp_path / "int4"
        quantise(target, model, QuantRecipe(group_size=32))
    ours, theirs = (_capture(model, engine, tmp_path / engine) for engine in ("vllm", "transformers"))
    assert len(ours) == len(LENGTHS)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        assert torch.equal(one.supervised, other.supervised)
        states, reference = one.hidden_states.float(), other.hidden_states.float()
        assert float((states - reference).norm() / reference.norm()) < tolerance
    same = torch.cat([one.choices == other.choices for one, other in zip(ours, theirs, strict=True)])
    assert float(same.float().mean()) >= agreeing


def test_only_targets_that_vllm_can_draft_for_are_served(target: Path, tmp_path: Path) -> None:
    check_served(target)
    for name, reason in (("GPT2LMHeadModel", "SupportsEagle3"), ("NoSuchModel", "does not serve")):
        (tmp_path / "config.json").write_text(f'{{"architectures": ["{name}"]}}')
        with pytest.raises(RecipeError, match=reason):
            check_served(tmp_path)
