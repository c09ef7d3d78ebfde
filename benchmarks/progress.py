# SPDX-License-Identifier: Apache-2.0
"""The bars of measurements made of kept points, and what Ctrl-C leaves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from aerie.benchmarks.points import Points

SPEED_SECONDS = 7200.0
"""By which the time left is told: points take minutes, and within rich's half a minute there is no speed."""


@contextmanager
def counted(total: int, done: int) -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """A bar over `total` points with the time left; yields `measure(name, point)`, which names, runs and counts one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=SPEED_SECONDS) as progress:
        bar = progress.add_task("", total=total, completed=done)

        def measure(name: str, point: Callable[[], object]) -> None:
            progress.update(bar, description=name)
            point()
            progress.advance(bar)

        yield measure


@contextmanager
def resumable(points: Points, total: int) -> Iterator[Callable[[str], None]]:
    """Yields what to call with the name of each point once it is there. Ctrl-C says where they are, and goes on up."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    done = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=total)

        def advance(name: str) -> None:
            nonlocal done
            done += 1
            progress.update(task, description=name, advance=1)

        try:
            yield advance
        except KeyboardInterrupt:
            where = f"interrupted: {done} of {total} points are kept in {points.folder}"
            console.print(
                f"{where}; the same command goes on from there", markup=False, highlight=False, soft_wrap=True
            )
            raise
