# SPDX-License-Identifier: Apache-2.0
"""The form of every result file: `provenance` (what ran where), `runs` (raw), `figures` (a flat map to numbers)."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from aerie import artefacts
from aerie.benchmarks.errors import BenchmarkError

Value = TypeVar("Value")
FigureName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


class ResultsError(BenchmarkError):
    """A result file cannot be read, or several cannot be merged."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be finite: JSON has no NaN, and a figure that was not measured is left out")
    return value


Figure = Annotated[float, AfterValidator(_finite)]


class Provenance(BaseModel):
    """What a result was measured with; the fields of `aerie.artefacts.provenance`, and each part's own when merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str
    versions: dict[str, str]
    arguments: dict[str, JsonValue]
    seeds: list[int]
    inputs: dict[str, str]
    """SHA-256 by name, such as `model/model.safetensors`; never a path of the machine."""
    machine: dict[str, JsonValue]
    parts: "dict[str, Provenance] | None" = None

    @classmethod
    def now(cls, arguments: Mapping[str, Any], seeds: list[int], inputs: Mapping[str, str] | None = None) -> Self:
        """The provenance of a measurement made by this process."""
        return cls.model_validate(artefacts.provenance(arguments, seeds, inputs))


class Run(BaseModel):
    """One raw measurement: which command made it, and what it saw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    measured: dict[str, JsonValue]


class ResultFile(BaseModel):
    """A whole result file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provenance: Provenance
    runs: list[Run] = Field(min_length=1)
    figures: dict[FigureName, Figure]

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        artefacts.write_json(path, self.model_dump(mode="json", exclude_defaults=True))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and validate a file; raises ResultsError, which names the first fault and where it is."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path}: is not JSON: line {error.lineno}: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise ResultsError(f"{path}: is not text") from error
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            raise ResultsError(f"{path}: {_fault(found, error)}") from error


def _fault(found: object, error: ValidationError) -> str:
    """What keeps a file from being a result of this version, and what to do."""
    parts = set(ResultFile.model_fields)
    if not isinstance(found, dict) or not parts & found.keys():
        return f"is no result file: it has none of {', '.join(sorted(parts))}"
    first = error.errors(include_url=False)[0]
    where, provenance = ".".join(map(str, first["loc"])), found.get("provenance")
    commit = provenance.get("commit") if isinstance(provenance, dict) else None
    written = (
        f"commit {commit}, which wrote it, reads it" if isinstance(commit, str) else "it names no commit that wrote it"
    )
    return f"is no result file of this version: {where}: {first['msg']}; {written}"


def merge(parts: Mapping[str, ResultFile]) -> ResultFile:
    """One file with the runs and figures of all parts; raises ResultsError when they do not belong together.

    Parts belong together when they ran on the same machine with the same versions on the same inputs. They may come
    from different commits (a result is often the only change between them): all are named, joined by `+`, and each
    part's own provenance is kept.
    """
    if not parts:
        raise ResultsError("nothing to merge")
    provenances = {name: part.provenance for name, part in parts.items()}
    commits = {one.commit for one in provenances.values()}
    return ResultFile(
        provenance=Provenance(
            commit="+".join(sorted(commits)),
            versions=_same("versions", {name: one.versions for name, one in provenances.items()}),
            arguments={name: one.arguments for name, one in provenances.items()},
            seeds=sorted({seed for one in provenances.values() for seed in one.seeds}),
            inputs=_union("input", ((name, one.inputs) for name, one in provenances.items())),
            machine=_same("machine", {name: one.machine for name, one in provenances.items()}),
            parts=provenances,
        ),
        runs=[run for part in parts.values() for run in part.runs],
        figures=_union("figure", ((name, part.figures) for name, part in parts.items())),
    )


def _same(what: str, values: Mapping[str, Value]) -> Value:
    (first, value), *others = values.items()
    for name, other in others:
        if other != value:
            raise ResultsError(f"{what} of {name} differs from that of {first}: {other} against {value}")
    return value


def _union(what: str, maps: Iterable[tuple[str, Mapping[str, Value]]]) -> dict[str, Value]:
    merged: dict[str, Value] = {}
    for part, entries in maps:
        for name, value in entries.items():
            if merged.setdefault(name, value) != value:
                raise ResultsError(f"{what} {name} of {part} is {value}, but {merged[name]} in an earlier part")
    return merged
