# SPDX-License-Identifier: Apache-2.0
"""What `aerie quantize` refuses before it works."""

from pathlib import Path

import pytest

from aerie.quant.errors import QuantError
from aerie.trainer.quantise import Recipe, run

GENERATED = "{source: generated, prompts: {source: jsonl, path: p, clount: 3}}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"calibration: {GENERATED}", r"clount: is no option; did you mean count\? The options here are count, "),
        ("calibration: {source: file, path: p, heldout: q}", r"did you mean held_out\? .* held_out, path, source$"),
        ("draft: {path: d, K: 3}", r"draft\.K: is no option; The options here are .*draft_tokens.*path"),
    ],
)
def test_a_misspelt_key_is_told_with_those_that_could_stand_there(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(QuantError, match=problem):
        Recipe.from_yaml(path)


def test_a_draft_s_folder_without_a_configuration_is_named_before_the_work(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"draft": {"path": str(tmp_path / "absent")}})
    with pytest.raises(QuantError, match=r"recipe option draft\.path: .*absent: no config\.json there"):
        run(tmp_path, tmp_path / "out", recipe)
