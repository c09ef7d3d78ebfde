# SPDX-License-Identifier: Apache-2.0
"""The curve of a training: named scalars by update, in a JSONL file and, where a writer is installed, for TensorBoard.

The file is the record: append-only, one entry a line, and cut back to the checkpoint's update when a killed training
goes on, so that nothing stands in it twice. The event files are a view of it, made anew at every start.

Names: `training/loss`, `training/accuracy/STEP`, `training/learning_rate`, `training/tokens_per_second`,
`simulated/tau/K`, `simulated/loss`, and what `served.Measurement.scalars` gives.
"""

import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from aerie.artefacts import write_atomic
from aerie.trainer.recipe import Schema

FILE, EVENTS = "journal.jsonl", "tensorboard"
# Both have the same SummaryWriter; the first needs no more than protobuf.
WRITERS = ("tensorboardX", "torch.utils.tensorboard")
OFF = "TensorBoard is off: no writer is installed (pip install tensorboardX); the curve is in {path}"


class Entry(Schema):
    """One line."""

    update: int
    time: float
    """Seconds since 1970."""
    scalars: dict[str, float]


def read_journal(path: Path) -> list[Entry]:
    """The entries of a file in the order they were written; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last line break was never finished.
    return [Entry.model_validate_json(line) for line in lines[:-1]]


def series(entries: Sequence[Entry], name: str) -> list[tuple[int, float]]:
    """(update, value) of one scalar, by update."""
    return sorted((entry.update, entry.scalars[name]) for entry in entries if name in entry.scalars)


def numbered(name: str, values: Sequence[float]) -> dict[str, float]:
    """`name/1`, `name/2`, ... for a list of values."""
    return {f"{name}/{number}": value for number, value in enumerate(values, 1)}


class Journal:
    """Open for a training that stands behind `update` updates; a context manager."""

    def __init__(self, folder: Path, update: int = 0, log: Callable[[str], None] = print) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        kept = [entry for entry in read_journal(self.path) if entry.update <= update]
        write_atomic(self.path, "".join(_line(entry) for entry in kept))
        self._written = {(entry.update, name) for entry in kept for name in entry.scalars}
        self._file = self.path.open("a", encoding="utf-8")
        self._events = _event_writer(folder / EVENTS)
        if self._events is None:
            log(OFF.format(path=self.path))
        for entry in kept:
            self._show(entry)

    def write(self, update: int, scalars: Mapping[str, float]) -> None:
        """Record what belongs to an update; scalars that it has already are left as they are."""
        new = {name: float(value) for name, value in scalars.items() if (update, name) not in self._written}
        if not new:
            return
        entry = Entry(update=update, time=round(time.time(), 3), scalars=new)
        self._written |= {(update, name) for name in new}
        self._file.write(_line(entry))
        self._file.flush()
        self._show(entry)

    def entries(self) -> list[Entry]:
        """All that was written."""
        return read_journal(self.path)

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, entry: Entry) -> None:
        if self._events is not None:
            for name, value in entry.scalars.items():
                self._events.add_scalar(name, value, entry.update, walltime=entry.time)


def _line(entry: Entry) -> str:
    return json.dumps(entry.model_dump(mode="json")) + "\n"


def _event_writer(folder: Path) -> Any:  # noqa: ANN401 -- either library's SummaryWriter, both untyped
    for module in _importable(WRITERS):
        shutil.rmtree(folder, ignore_errors=True)
        return module.SummaryWriter(str(folder))
    return None


def _importable(names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        try:
            yield importlib.import_module(name)
        except ImportError:
            continue
