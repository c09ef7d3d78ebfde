# SPDX-License-Identifier: Apache-2.0
"""Measured points that outlive an interruption: one file each, written whole, and none is measured twice."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue

from aerie import artefacts

Record = dict[str, JsonValue]


class Points:
    """The points of one measurement, in a folder of their own below `work`.

    The folder's name stands for all that shapes a point: the settings, the commit, the versions, the machine. After a
    change to any of them nothing old is taken for new.
    """

    def __init__(self, work: Path, settings: Mapping[str, JsonValue]) -> None:
        shaping = [dict(settings), artefacts.source_commit(), artefacts.versions(), artefacts.machine()]
        digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()
        self.folder = work / digest[:16]

    def found(self, name: str) -> list[Record] | None:
        """What was kept of a point; `None` when it was never finished."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        records: list[Record] = json.loads(path.read_text())
        return records

    def kept(self, name: str, measure: Callable[[], list[Record]]) -> list[Record]:
        """What `measure` returned, now or in an earlier run."""
        if (records := self.found(name)) is None:
            records = measure()
            artefacts.write_json(self.folder / f"{name}.json", records)
        return records


def number(record: Record, name: str) -> float:
    """A field that must be a number.

    Raises:
        KeyError: there is no such field.
        TypeError: it is something else.
    """
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is not a number: {value}")
    return float(value)


def whole_numbers(record: Record, name: str) -> list[int]:
    """A field that must be a list of integers; raises TypeError when it is none."""
    found = record[name]
    if not isinstance(found, list):
        raise TypeError(f"{name} is not a list: {found}")
    return [int(str(one)) for one in found]
