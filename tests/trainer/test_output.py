# SPDX-License-Identifier: Apache-2.0
"""A command writes its result into a folder of its own, and never over somebody's files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aerie.artefacts import OccupiedError, output_directory
from aerie.trainer.draft.run import run as train_draft
from aerie.trainer.main.run import run as train_main
from aerie.trainer.output import check_output
from aerie.trainer.recipe import RecipeError

RECIPE = {"seed": 1}


def _recipe_of(record: Mapping[str, object]) -> object:
    return record["recipe"]


def _check(folder: Path) -> None:
    check_output(folder, "card.json", RECIPE, _recipe_of)


def _finished(folder: Path) -> Path:
    folder.mkdir()
    (folder / "weights").write_text("trained")
    (folder / "card.json").write_text(json.dumps({"recipe": RECIPE, "files": {"weights": "sha"}}))
    return folder


def test_a_new_or_an_empty_folder_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with output_directory(tmp_path / name) as staging:
            (staging / "result").write_text(name)
        assert (tmp_path / name / "result").read_text() == name


def test_a_folder_of_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for record in (None, "card.json"):
        with pytest.raises(OccupiedError, match="holds other files"), output_directory(tmp_path, replaces=record):
            raise AssertionError("the work began")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def _write_while_another_does(out: Path) -> None:
    with output_directory(out) as staging:
        (staging / "result").touch()
        out.mkdir()
        (out / "thesis.txt").touch()


def test_a_folder_that_was_filled_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OccupiedError):
        _write_while_another_does(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with output_directory(tmp_path / "link") as staging:
        (staging / "result").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk/result").exists()


def test_a_training_may_write_its_own_result_again(tmp_path: Path) -> None:
    _check(tmp_path / "new")
    _check(_finished(tmp_path / "out"))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "notes.txt").touch(), "holds notes.txt, which no training wrote"),
        (lambda folder: (folder / "card.json").unlink(), "holds other files"),
        (lambda folder: (folder / "card.json").write_text("{}"), "something else"),
        (lambda folder: (folder / "card.json").write_text('{"recipe": {"seed": 2}, "files": {}}'), "another recipe"),
    ],
)
def test_another_result_is_refused(tmp_path: Path, spoil: Callable[[Path], object], problem: str) -> None:
    out = _finished(tmp_path / "out")
    spoil(out)
    with pytest.raises(RecipeError, match=f"^output: .*{problem}"):
        _check(out)
    assert (out / "weights").read_text() == "trained"


@pytest.mark.parametrize("command", [train_draft, train_main])
def test_trainings_refuse_before_any_work(tmp_path: Path, command: Callable[[Path], Path]) -> None:
    out, recipe = tmp_path / "out", tmp_path / "recipe.yaml"
    out.mkdir()
    (out / "thesis.txt").touch()
    only = {"target": "nowhere", "work": str(tmp_path / "work")}
    sizes = {"documents": 1, "validation_documents": 1}
    main = {"corpus": sizes, "optimisation": {"documents_per_step": 1, "learning_rate": 1}}
    recipe.write_text(json.dumps({"output": str(out), **(only if command is train_draft else main)}))
    with pytest.raises(RecipeError, match=r"output: .* remove it, or choose another"):
        command(recipe)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda target: target.rmdir(), "is not a folder; give that of a main model"),
        (lambda target: None, "no readable config.json"),
        (lambda target: (target / "config.json").write_text("{"), "no readable config.json"),
        (lambda target: (target / "config.json").write_text("{}"), r"has no \*\.safetensors"),
        (lambda target: _truncate(target), "is not a whole safetensors file"),
    ],
)
def test_a_target_that_is_not_all_there_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    target, recipe = tmp_path / "target", tmp_path / "recipe.yaml"
    target.mkdir()
    spoil(target)
    paths = {"target": str(target), "output": str(tmp_path / "out"), "work": str(tmp_path / "work")}
    recipe.write_text(json.dumps(paths))
    with pytest.raises(RecipeError, match=f"^(target: )?.*{problem}"):
        train_draft(recipe)
    assert not (tmp_path / "work").exists()


def _truncate(target: Path) -> None:
    (target / "config.json").write_text("{}")
    save_file({"weight": torch.ones(8)}, target / "model.safetensors")
    whole = (target / "model.safetensors").read_bytes()
    (target / "model.safetensors").write_bytes(whole[:-4])


@pytest.mark.parametrize("option", ["work", "target"])
def test_a_result_may_not_hold_what_it_was_made_of(tmp_path: Path, option: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    paths = {"target": "target", "work": "work"} | {option: str(tmp_path / "out/within")}
    recipe.write_text(json.dumps({"output": str(tmp_path / "out"), **paths}))
    with pytest.raises(RecipeError, match=f"output: .* is or holds `{option}`"):
        train_draft(recipe)
