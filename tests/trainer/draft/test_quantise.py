# SPDX-License-Identifier: Apache-2.0
"""`aerie quantize` with text: that the model writes itself, or of a file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from aerie.draft_models.checkpoint import verify_draft
from aerie.quant.convert import HELD_OUT
from aerie.quant.errors import QuantError
from aerie.quant.layerwise import CALIBRATION
from aerie.quant.report import QuantReport
from aerie.trainer import quantise
from aerie.trainer.draft.recipe import Served
from aerie.trainer.quantise import Recipe


def generated(tmp_path: Path) -> Recipe:
    """A recipe whose text the model writes; calibration's prompts contain the held-out ones."""
    said = ["hello doctor", "my head hurts", "what can i do", "since monday", "can i do", "doctor what", "i do", "head"]
    lines = [json.dumps({"messages": [{"role": "user", "content": one}]}) + "\n" for one in said]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    (tmp_path / "held_out.jsonl").write_text("".join(lines[:3]))
    calibration = {
        "source": "generated",
        "prompts": {"source": "jsonl", "path": str(tmp_path / "prompts.jsonl")},
        "held_out": {"source": "jsonl", "path": str(tmp_path / "held_out.jsonl")},
        "answers": {"engine": "transformers", "temperature": 1.0, "max_tokens": 12},
        "work": str(tmp_path / "work"),
    }
    return Recipe.model_validate({"method": "awq", "group_size": 32, "calibration": calibration})


def test_the_model_writes_its_text_once_and_held_out_stays_out(target: Path, tmp_path: Path) -> None:
    recipe = generated(tmp_path)
    texts = quantise.documents(target, recipe)
    assert {name: len(found) for name, found in texts.items()} == {CALIBRATION: 5, HELD_OUT: 3}
    prompts = {name: {one.token_ids[: one.given] for one in found} for name, found in texts.items()}
    assert not prompts[CALIBRATION] & prompts[HELD_OUT]
    assert all(one.given < len(one.token_ids) <= one.given + 12 for found in texts.values() for one in found)
    made = sorted((tmp_path / "work").rglob("*.jsonl"))
    times = [path.stat().st_mtime_ns for path in made]
    assert quantise.documents(target, recipe) == texts
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("*.jsonl"))] == times


def test_run_writes_checkpoint_report_and_page(target: Path, tmp_path: Path) -> None:
    report = quantise.run(target, tmp_path / "int4", generated(tmp_path))
    assert report.quality is not None
    assert report.quality.tokens > 0
    recorded = json.loads((tmp_path / "int4/quant_report.json").read_text())["provenance"]["arguments"]
    assert recorded["calibration"]["prompts"]["path"].endswith("prompts.jsonl")
    page = (tmp_path / "int4/quant_report.md").read_text()
    assert f"{report.quality.perplexity_after:.4f}" in page
    assert "| attention |" in page
    assert (tmp_path / "int4/quant_report.svg").read_text().startswith("<svg")


@pytest.mark.engine
def test_the_report_tells_what_a_draft_makes_of_both_models(
    target: Path, head: Path, settings: Served, tmp_path: Path
) -> None:
    draft = settings.model_dump() | {"path": head}
    report = quantise.run(target, tmp_path / "int4", Recipe.model_validate({"group_size": 32, "draft": draft}))
    assert report == QuantReport.model_validate_json((tmp_path / "int4/quant_report.json").read_text())
    found = report.acceptance
    assert found is not None
    assert (found.draft, found.draft_tokens, found.prompts) == ("draft", settings.draft_tokens, 6)
    assert min(found.before, found.after) >= 1
    assert max(found.before, found.after) <= 1 + settings.draft_tokens
    assert f"{found.before:.3f} on the unquantised model" in (tmp_path / "int4/quant_report.md").read_text()


def test_a_draft_of_another_target_is_refused_before_anything_is_made(target: Path, head: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(head, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(QuantError, match=r"draft\.path: .*vocab_size"):
        quantise.run(target, tmp_path / "int4", Recipe.model_validate({"group_size": 32, "draft": {"path": other}}))
    assert not (tmp_path / "int4").exists()


def test_answers_are_sampled_unless_the_recipe_says_otherwise() -> None:
    recipe = Recipe.model_validate({"calibration": {"source": "generated", "answers": {"max_tokens": 12}}})
    assert isinstance(recipe.calibration, quantise.Generated)
    assert recipe.calibration.answers.temperature == 1.0


def test_a_draft_becomes_int4_and_still_fits_its_target(target: Path, head: Path, tmp_path: Path) -> None:
    out = tmp_path / "draft-int4"
    report = quantise.run(head, out, Recipe(group_size=32, ignore=()))
    assert {layer.name for layer in report.layers} >= {"fc", "lm_head", "midlayer.self_attn.g_proj"}
    assert verify_draft(out, target) == ()
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.get_tensor("d2t").dtype == torch.int64


@pytest.mark.parametrize(("option", "value"), [("method", "awq"), ("format", "gptq")])
def test_what_a_draft_cannot_be_is_refused(head: Path, tmp_path: Path, option: str, value: str) -> None:
    recipe = Recipe.model_validate({"group_size": 32, option: value})
    with pytest.raises(QuantError, match=f"recipe option {option}: .*draft"):
        quantise.run(head, tmp_path / "out", recipe)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_chats_and_plain_text(target: Path, tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "hello doctor"}, {"role": "assistant", "content": "hello"}]},
        {"text": "my head\u2028hurts"},
        {"prompt_ids": [5, 6, 7], "answer_ids": [8, 9]},
    ]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    recipe = Recipe.model_validate({"calibration": {"source": "file", "path": str(path)}})
    chat, text, ids = quantise.documents(target, recipe)[CALIBRATION]
    assert chat.given == text.given == 1
    assert len(chat.token_ids) > len(text.token_ids) > 1
    assert (ids.token_ids, ids.given) == ((5, 6, 7, 8, 9), 3)
    path.write_text(path.read_text() + '{"prompt": "hello"}\n')
    with pytest.raises(QuantError, match=r"text\.jsonl, line 4: is none of"):
        quantise.documents(target, recipe)
