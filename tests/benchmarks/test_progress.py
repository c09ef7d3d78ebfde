# SPDX-License-Identifier: Apache-2.0
from functools import partial
from pathlib import Path

import pytest

from aerie.benchmarks.points import Points, Record
from aerie.benchmarks.progress import resumable


def test_ctrl_c_says_what_is_kept_and_the_next_run_measures_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points, measured = Points(tmp_path, {"seed": 0}), list[str]()

    def measure(name: str) -> list[Record]:
        if name == "b" and "b" not in measured:
            measured.append(name)
            raise KeyboardInterrupt
        measured.append(name)
        return [{"name": name}]

    def session() -> list[Record]:
        found = list[Record]()
        with resumable(points, 3) as advance:
            for name in ("a", "b", "c"):
                found += points.kept(name, partial(measure, name))
                advance(name)
        return found

    with pytest.raises(KeyboardInterrupt):
        session()
    said = capsys.readouterr().err
    assert f"interrupted: 1 of 3 points are kept in {points.folder}; the same command goes on" in said
    assert session() == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert measured == ["a", "b", "b", "c"]
