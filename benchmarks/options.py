# SPDX-License-Identifier: Apache-2.0
"""Command-line options that the benchmarks share, and how they are recorded."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from aerie.artefacts import REPOSITORY, sha256_file, sha256_tree
from aerie.benchmarks.errors import BenchmarkError
from aerie.draft_models.acceptance import AcceptanceError

DEMO_MODEL = REPOSITORY / "checkpoints/clinic-demo/main"
DEMO_DRAFT = REPOSITORY / "checkpoints/clinic-demo/draft"
SHAPING = ("OMP_NUM_THREADS", "VLLM_", "AERIE_")
"""How variables begin that shape a server's speed."""

_FOLDER = {"exists": True, "file_okay": False}
Out = Annotated[Path, typer.Option(dir_okay=False, help="Result file to write.")]
Model = Annotated[Path, typer.Option(**_FOLDER, help="Main model.")]
Draft = Annotated[Path, typer.Option(**_FOLDER, help="Draft head.")]
DraftTokens = Annotated[int, typer.Option(min=1, help="K: tokens drafted per step.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer; most end by themselves before.")]
Count = Annotated[int, typer.Option(min=1, help="Prompts.")]
Seed = Annotated[int, typer.Option(help="Seed of the prompts and of the engine.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="File of prompts instead of the clinic's held-out consultations; docs/benchmarks.md lists the forms.",
    ),
]


def run(main: Callable[..., None]) -> None:
    """Run a command; a measurement that failed ends it with one line and status 1."""
    try:
        typer.run(main)
    except (BenchmarkError, AcceptanceError) as error:
        sys.exit(f"error: {error}")


def _portable(value: object) -> JsonValue:
    if isinstance(value, Path):
        # A result file must not tell how the machine is arranged.
        inside = value.resolve().is_relative_to(REPOSITORY)
        return value.resolve().relative_to(REPOSITORY).as_posix() if inside else value.name
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _portable(item) for name, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def recorded(arguments: Mapping[str, Any], **more: object) -> dict[str, JsonValue]:
    """A command's arguments for the provenance; paths relative to the repository, where the result goes left out."""
    chosen = {name: value for name, value in arguments.items() if name != "out"} | more
    return {name: _portable(value) for name, value in chosen.items()}


def environment(names: tuple[str, ...] = SHAPING) -> dict[str, str]:
    """The variables whose names begin so, for the provenance."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(names)}


def inputs(**paths: Path | None) -> dict[str, str]:
    """SHA-256 of every file read, named by the role of its folder: `model/model.safetensors`."""
    hashes: dict[str, str] = {}
    for role, path in paths.items():
        if path is not None:
            files = sha256_tree(path) if path.is_dir() else {path.name: sha256_file(path)}
            hashes |= {f"{role}/{name}": digest for name, digest in files.items()}
    return hashes


def show(figures: Mapping[str, float]) -> None:
    """Print figures as a table."""
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
