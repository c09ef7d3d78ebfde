# SPDX-License-Identifier: Apache-2.0
"""`aerie bench report` and `aerie bench compare`: what is done with result files once they are there."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from aerie.benchmarks.errors import BenchmarkError

reports = typer.Typer()

Result = Annotated[Path, typer.Argument(dir_okay=False, help="Result file.")]


def _on_files(act: Callable[[], int]) -> int:
    """Files that do not do are the user's mistake: one line, and status 2."""
    try:
        return act()
    except BenchmarkError as error:
        raise TyperException(str(error)) from error


@reports.command("report")
def bench_report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", dir_okay=False, help="Result files.")],
    out: Annotated[
        Path, typer.Option("--out", dir_okay=False, help="Page to write, .html; Markdown and pictures go beside it.")
    ] = Path("report.html"),
) -> int:
    """Render result files as one self-contained HTML page, and as Markdown beside it.

    Nothing is fetched and no script is in it: it can be mailed, and read on a phone.
    """
    if out.suffix != ".html":
        raise TyperException(f"--out: {out} must end in .html; the Markdown goes beside it")
    from aerie.benchmarks.report import build

    def act() -> int:
        for path in build.run(results, out):
            print(path)
        return 0

    return _on_files(act)


@reports.command("compare")
def bench_compare(
    before: Result,
    after: Result,
    *,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also when machine or inputs differ.")] = False,
    spreads: Annotated[float, typer.Option("--spreads", min=0, help="How many spreads around each value count.")] = 2.0,
    everything: Annotated[bool, typer.Option("--all", help="Show also what lies within the spread.")] = False,
) -> int:
    """Say which figures of the second result differ from the first's by more than their spread.

    Exits with 0 when none is worse, 1 when any is, 2 when the files cannot be compared.
    """
    from aerie.benchmarks.report import compare
    from aerie.benchmarks.results_file import ResultFile

    def act() -> int:
        files = (ResultFile.read(path) for path in (before, after))
        return compare.run(*files, anyway=anyway, everything=everything, spreads_each=spreads)

    return _on_files(act)
