# SPDX-License-Identifier: Apache-2.0
"""The training's curve: never twice, never lost, and the same in TensorBoard."""

from pathlib import Path

import pytest

from aerie.trainer.draft.journal import EVENTS, WRITERS, Journal, numbered, read_journal, series


def quiet(_: str) -> None:
    """For tests that do not read the log."""


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    with Journal(tmp_path, log=quiet) as journal:
        journal.write(1, {"training/loss": 3.0})
        journal.write(2, {"training/loss": 2.0, **numbered("simulated/tau", [1.5, 2.5])})
    assert series(read_journal(journal.path), "training/loss") == [(1, 3.0), (2, 2.0)]
    assert series(journal.entries(), "simulated/tau/2") == [(2, 2.5)]


def test_a_killed_training_goes_on_without_an_entry_twice(tmp_path: Path) -> None:
    with Journal(tmp_path, log=quiet) as journal:
        for update in range(1, 6):
            journal.write(update, {"training/loss": float(update)})
        # Measured at 2, ready at 5.
        journal.write(2, {"served/tau": 3.5})
    with journal.path.open("a") as file:
        file.write('{"update": 6, "ti')
    with Journal(tmp_path, update=3, log=quiet) as resumed:
        resumed.write(4, {"training/loss": 40.0})
        resumed.write(2, {"served/tau": 3.5})
    assert series(resumed.entries(), "training/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert series(resumed.entries(), "served/tau") == [(2, 3.5)]
    assert len(resumed.entries()) == 5


def test_it_says_once_that_tensorboard_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerie.trainer.draft.journal.WRITERS", ("a_writer_that_nobody_has",))
    said: list[str] = []
    with Journal(tmp_path, log=said.append) as journal:
        journal.write(1, {"training/loss": 3.0})
    assert len(said) == 1
    assert "pip install tensorboardX" in said[0]
    assert not (tmp_path / EVENTS).exists()


def test_event_files_hold_what_the_journal_holds(tmp_path: Path) -> None:
    pytest.importorskip(WRITERS[0])
    said: list[str] = []
    with Journal(tmp_path, log=said.append) as journal:
        journal.write(1, {"training/loss": 3.0})
        journal.write(2, {"training/loss": 2.0})
    with Journal(tmp_path, update=1, log=said.append) as resumed:
        resumed.write(2, {"training/loss": 1.0})
    assert said == []
    (events,) = (tmp_path / EVENTS).iterdir()
    assert events.read_bytes().count(b"training/loss") == len(resumed.entries()) == 2
