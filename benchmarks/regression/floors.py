# SPDX-License-Identifier: Apache-2.0
"""The committed bounds of the shipped demo, `floors.json`: what was measured, how, and by how much it may get worse."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aerie.artefacts import REPOSITORY, write_json
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.results_file import Figure, FigureName, Provenance

COMMITTED = REPOSITORY / "benchmarks/regression/floors.json"

_FIX = "restore the file from its commit"


class Asked(BaseModel):
    """What is measured; with the checkpoints it determines every figure, but for the machine's rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    draft_tokens: int = Field(ge=1)
    prompts: int = Field(ge=1)
    """Of each domain."""
    max_tokens: int = Field(ge=1)
    documents: int = Field(ge=1)
    """Consultations whose perplexity is taken."""


class Bound(BaseModel):
    """How far one figure may fall (`least`) or rise (`most`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["least", "most"]
    measured: Figure
    margin: float = Field(gt=0, lt=1)
    """As a share of `measured`: what another machine's rounding may change, and no more than a regression would."""

    @property
    def limit(self) -> float:
        """The worst value that passes."""
        return self.measured * (1 - self.margin if self.kind == "least" else 1 + self.margin)

    def beyond(self, value: float) -> float:
        """By how much `value` is worse than the limit; at most 0 where it passes."""
        return self.limit - value if self.kind == "least" else value - self.limit


class Floors(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provenance: Provenance
    asked: Asked
    bounds: dict[FigureName, Bound] = Field(min_length=1)
    trials: dict[str, dict[FigureName, Figure]] = Field(default_factory=dict)
    """What the margins were chosen by: the same figures under coarser rounding, and of damaged checkpoints."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and validate a file; raises BenchmarkError."""
        try:
            return cls.model_validate(json.loads(path.read_text()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            raise BenchmarkError(f"--floors {path}: {where}: {first['msg']}; {_FIX}") from error
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"--floors {path}: {error}; {_FIX}") from error

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, self.model_dump(mode="json", exclude_defaults=True))

    def recorded(self, measured: Mapping[str, float], provenance: Provenance) -> "Floors":
        """The same bounds around other measurements."""
        bounds = {name: bound.model_copy(update={"measured": measured[name]}) for name, bound in self.bounds.items()}
        return self.model_copy(update={"provenance": provenance, "bounds": bounds})

    def faults(self, measured: Mapping[str, float]) -> list[str]:
        """What fell out of its bounds, and by how much, a line each; empty when all is well."""
        found = []
        for name, bound in self.bounds.items():
            if name not in measured:
                found.append(f"{name} was not measured")
            elif not (by := bound.beyond(measured[name])) <= 0:  # NaN does not pass either
                side = "below its floor" if bound.kind == "least" else "above its ceiling"
                found.append(
                    f"{name} is {measured[name]:.4f}, {by:.4f} {side} of {bound.limit:.4f} "
                    f"({measured[name] / bound.measured - 1:+.1%} of {bound.measured:.4f})"
                )
        return found
