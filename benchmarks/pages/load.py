# SPDX-License-Identifier: Apache-2.0
"""The committed results, by name, and how a page says where a figure comes from."""

from dataclasses import dataclass, field
from pathlib import Path

from aerie.artefacts import REPOSITORY
from aerie.benchmarks.report.sections import provenance
from aerie.benchmarks.results_file import ResultFile

FOLDER = REPOSITORY / "benchmarks/results"


@dataclass(frozen=True)
class Results:
    """A folder of result files; each is read once."""

    folder: Path = FOLDER
    _read: dict[str, ResultFile] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ResultFile:
        if name not in self._read:
            self._read[name] = ResultFile.read(self.folder / f"{name}.json")
        return self._read[name]

    def names(self) -> list[str]:
        """What is there, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def with_benchmark(self, benchmark: str) -> list[str]:
        """The results that have runs of a benchmark."""
        return [name for name in self.names() if any(run.benchmark == benchmark for run in self[name].runs)]


def measured(result: ResultFile) -> str:
    """Machine and commit, without a full stop."""
    machine = provenance.machine(result.provenance.machine)
    return f"Measured on {machine}; commit `{result.provenance.commit}`"


def source(name: str, result: ResultFile) -> str:
    """The same with the file, for pages in `docs/`."""
    return f"{measured(result)}; [{name}.json](../benchmarks/results/{name}.json)."
