# SPDX-License-Identifier: Apache-2.0
"""Acceptance in the engine, measured by a second process while the training goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from aerie.trainer.draft.recipe import DraftRecipe, Served
from aerie.trainer.draft.served import Measurement, ServedAcceptance, Tau

PROMPTS, DRAFT_TOKENS = 6, 3
"""Of conftest's `settings`."""
PATIENCE_S = 60


@pytest.mark.engine
def test_a_head_is_measured_while_the_training_goes_on(
    target: Path, head: Path, settings: Served, tmp_path: Path
) -> None:
    random_state = torch.get_rng_state()
    with ServedAcceptance(target, settings, tmp_path) as served:
        began = time.monotonic()
        served.start(head, 200)
        served.start(head, 400)
        assert served.busy
        assert served.collect() == []
        assert time.monotonic() - began < PATIENCE_S / 10
        (one,) = served.wait()
        assert served.collect() == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (one.update, one.draft_tokens) == (200, DRAFT_TOKENS)
    # shared/spec-decode: the counts explain each other.
    for tau in (one.overall, *one.domains.values()):
        assert sum(tau.histogram) == tau.steps
        assert sum(index * count for index, count in enumerate(tau.histogram)) == tau.accepted
        assert tau.length == pytest.approx(1 + tau.accepted / tau.steps)
        assert 1 + sum(tau.per_position) == pytest.approx(tau.length)
    assert set(one.domains) <= {"head", "knee"}
    assert sum(tau.steps for tau in one.domains.values()) == one.overall.steps
    assert {"served/tau", f"served/position/{DRAFT_TOKENS}"} <= one.scalars().keys()


def test_a_head_that_cannot_be_served_costs_one_line(target: Path, settings: Served, tmp_path: Path) -> None:
    said: list[str] = []
    with ServedAcceptance(target, settings.model_copy(update={"max_tokens": 10**6}), tmp_path, said.append) as served:
        served.start(tmp_path / "nothing", 5)
        assert served.wait() == []
    assert len(said) == 1
    assert said[0].startswith("update 5: acceptance was not measured, the training goes on: RecipeError: served.max")
    assert "\n" not in said[0]


def test_the_measuring_process_dies_with_a_killed_training(
    target: Path, head: Path, settings: Served, tmp_path: Path
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from aerie.trainer.draft.recipe import Served;"
        "from aerie.trainer.draft.served import ServedAcceptance;"
        "served = ServedAcceptance(Path(sys.argv[1]), Served.model_validate_json(sys.argv[2]), Path(sys.argv[3]));"
        "served.start(Path(sys.argv[4]), 1); print(served._running[0].pid, flush=True); time.sleep(600)"
    )
    arguments = [str(target), settings.model_dump_json(), str(tmp_path), str(head)]
    training = subprocess.Popen([sys.executable, "-P", "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    measuring = int(training.stdout.readline())
    training.send_signal(signal.SIGKILL)
    training.wait()
    training.stdout.close()
    until = time.monotonic() + PATIENCE_S
    while _lives(measuring) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _lives(measuring)
    # Left alone, it would have ended with a result.
    assert list(tmp_path.glob("*/job.json"))
    assert not list(tmp_path.glob("*/result.json"))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def measurement(update: int) -> Measurement:
    tau = Tau(
        length=2.0, length_std=0.0, per_position=(1.0, 0.0), histogram=(0, 3, 0), steps=3, drafted=6, accepted=3,
        requests=1, generated=7,
    )  # fmt: skip
    return Measurement(update=update, draft_tokens=2, temperature=0.0, seed=0, overall=tau, domains={})


def test_a_resumed_training_gets_what_was_measured_and_forgets_what_is_ahead(
    target: Path, settings: Served, tmp_path: Path
) -> None:
    served = ServedAcceptance(target, settings, tmp_path)
    for update in (100, 200, 300):
        folder = served.draft_folder(update).parent
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(measurement(update).model_dump_json())
    served.resume(200)
    assert [one.update for one in served.collect()] == [100, 200]
    assert not served.draft_folder(300).parent.exists()
    assert not served.busy


def test_prompts_keep_their_domain(settings: Served, recipe: DraftRecipe) -> None:
    from aerie.trainer.draft.prompts import load_prompts
    from aerie.trainer.draft.recipe import ClinicPrompts

    assert [chat.domain for chat in load_prompts(settings.prompts)] == ["head", "knee"] * (PROMPTS // 2)
    assert {chat.domain for chat in load_prompts(recipe.validation)} == {None}
    assert "cardiology" in {chat.domain for chat in load_prompts(ClinicPrompts(split="held_out", count=64))}
