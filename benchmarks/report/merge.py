# SPDX-License-Identifier: Apache-2.0
"""Several result files into one: `python -m aerie.benchmarks.report.merge PART... --out FILE`."""

from pathlib import Path
from typing import Annotated

import typer

from aerie.benchmarks import options
from aerie.benchmarks.results_file import ResultFile, merge


def main(
    out: options.Out,
    parts: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Result files.")],
) -> None:
    """Merge parts that ran on the same machine, versions and inputs."""
    merged = merge({path.stem: ResultFile.read(path) for path in parts})
    merged.write(out)
    options.show(merged.figures)


if __name__ == "__main__":
    options.run(main)
