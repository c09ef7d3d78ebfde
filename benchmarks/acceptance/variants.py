# SPDX-License-Identifier: Apache-2.0
"""What `aerie bench acceptance` compares: pairs of a main model and a draft, each under a name."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.options import DEMO_DRAFT, DEMO_MODEL
from aerie.draft_models.checkpoint import DraftMismatch, verify_draft

OPTION = "--variant"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Pair(BaseModel):
    """A main model with a draft."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: Path
    draft: Path

    @property
    def figure(self) -> str:
        """The name as it stands in figures."""
        return self.name.replace("-", "_")


DEMO = Pair(name="demo", model=DEMO_MODEL, draft=DEMO_DRAFT)


def parse(value: str) -> Pair:
    """A pair from `NAME=MODEL,DRAFT`; raises BenchmarkError."""
    name, named, folders = value.partition("=")
    model, both, draft = folders.rpartition(",")
    if not (name and named and both and model and draft):
        raise BenchmarkError(f"{OPTION} {value}: give NAME=MODEL,DRAFT, such as int4=runs/main,runs/draft")
    if not NAME.fullmatch(name):
        raise BenchmarkError(f"{OPTION} {value}: the name {name!r} must be of a-z, 0-9 and single hyphens")
    for folder in (Path(model), Path(draft)):
        if not (folder / "config.json").is_file():
            raise BenchmarkError(f"{OPTION} {value}: {folder} is no checkpoint; name a folder with a config.json")
    return Pair(name=name, model=Path(model), draft=Path(draft))


def parse_all(values: Sequence[str]) -> list[Pair]:
    """The pairs that were named, or the shipped demo; each is held against its model. Raises BenchmarkError."""
    pairs = [parse(value) for value in values] or [DEMO]
    names = [pair.name for pair in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BenchmarkError(f"{OPTION}: {', '.join(twice)} stands twice; give each variant a name of its own")
    for pair in pairs:
        try:
            verify_draft(pair.draft, pair.model)
        except DraftMismatch as error:
            raise BenchmarkError(f"{OPTION} {pair.name}: {error}") from error
    return pairs
