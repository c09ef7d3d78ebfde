# SPDX-License-Identifier: Apache-2.0
"""Trainings as they run for real: killed at any moment, shared by several processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aerie.trainer.draft.prepared import Prepared
from aerie.trainer.draft.recipe import DraftRecipe
from aerie.trainer.draft.run import run_recipe

AERIE = ["-P", "-m", "aerie", "train", "draft", "--recipe"]
SECONDS = 240


@pytest.fixture(scope="module")
def long(recipe: DraftRecipe) -> DraftRecipe:
    """Long enough to be cut off in the middle; a checkpoint after every update. Its data is captured already."""
    settings = {"epochs": 8, "checkpoint_every": 1, "accumulate": 2, "on_policy": {"epochs": 1}}
    long = DraftRecipe.model_validate(
        recipe.model_dump() | {"training": recipe.training.model_dump() | settings, "weights": "float32"}
    )
    Prepared.of(long)
    return long


def _write(recipe: DraftRecipe, folder: Path, **training: object) -> Path:
    changed = recipe.model_dump(mode="json") | {"output": str(folder / "draft")}
    changed["training"] |= training
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(changed))
    return path


def _forget(recipe: DraftRecipe) -> None:
    """Remove checkpoints: the same training starts over."""
    for folder in recipe.work.glob("training-*"):
        shutil.rmtree(folder)


def _launch(path: Path) -> subprocess.CompletedProcess[str]:
    """Two processes, as `accelerate launch` and torchrun start them."""
    command = ["-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    whole = [sys.executable, *command, sys.executable, *AERIE, str(path)]
    return subprocess.run(whole, env=_environment(), capture_output=True, text=True, timeout=SECONDS)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_training_killed_at_any_moment_ends_as_if_it_had_not_been(long: DraftRecipe, tmp_path: Path) -> None:
    whole = run_recipe(long.model_copy(update={"output": tmp_path / "whole"}))
    path = _write(long, tmp_path)
    _forget(long)
    waits = random.Random(7)
    for _ in range(3):
        started = subprocess.Popen([sys.executable, *AERIE, str(path)], env=_environment(), stderr=subprocess.PIPE)
        began = time.monotonic()
        while not list(long.work.glob("training-*/checkpoint.pt")) and started.poll() is None:
            assert time.monotonic() - began < SECONDS
            time.sleep(0.02)
        time.sleep(waits.uniform(0, 0.5))
        started.send_signal(signal.SIGKILL)
        started.communicate()
    subprocess.run([sys.executable, *AERIE, str(path)], env=_environment(), check=True, timeout=SECONDS)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "draft" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_learn_as_one(long: DraftRecipe, tmp_path: Path, sharding: str) -> None:
    alone = _curve(run_recipe(long.model_copy(update={"output": tmp_path / "alone"})))
    _forget(long)
    path = _write(long, tmp_path, sharding=sharding, threads=1)
    ended = _launch(path)
    assert ended.returncode == 0, ended.stderr
    together = _curve(tmp_path / "draft")
    assert [entry["update"] for entry in together] == [entry["update"] for entry in alone]
    for name in ("training_loss", "loss"):
        assert [entry[name] for entry in together] == pytest.approx([entry[name] for entry in alone], rel=2e-3)


def _curve(draft: Path) -> list[dict[str, Any]]:
    curve: list[dict[str, Any]] = json.loads((draft / "provenance.json").read_text())["curve"]
    return curve


def test_data_is_not_made_by_many_at_once(long: DraftRecipe, tmp_path: Path) -> None:
    path = _write(long.model_copy(update={"work": tmp_path / "empty"}), tmp_path)
    ended = _launch(path)
    assert ended.returncode != 0
    assert "--prepare" in ended.stderr
    assert not list((tmp_path / "empty").glob("[!.]*"))


def test_batches_must_be_shared_evenly(long: DraftRecipe, tmp_path: Path) -> None:
    path = _write(long, tmp_path, accumulate=1)
    ended = _launch(path)
    assert ended.returncode != 0
    assert "training.accumulate" in ended.stderr
