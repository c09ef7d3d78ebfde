# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a forward and backward pass by length and number of steps, ours and speculators'.

`.venv-oracle/bin/python -m aerie.benchmarks.training.memory --out benchmarks/results/draft-trainer-memory.json
--plot docs/assets/draft-trainer-memory.svg`, after `make oracle`. What else the machine does makes no difference.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aerie.artefacts import write_atomic
from aerie.benchmarks import options
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.training.growth import Peak, growth_figures
from aerie.benchmarks.training.memory_plot import draw

NAME = "training.memory"
LENGTHS, STEPS, SIDES = (512, 1024, 2048), (1, 7), ("ours", "speculators")
# Every buffer of 64 KiB or more is mapped by itself, and unmapped when freed: what an earlier pass left in the heap
# would hide memory that the next one needs.
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "MALLOC_TRIM_THRESHOLD_": str(64 << 10), "PYTHONSAFEPATH": "1"}


def measure(side: str, length: int, steps: int) -> Peak:
    """One point, in a fresh process."""
    command = [sys.executable, "-m", "aerie.benchmarks.training.memory_point", side, str(length), str(steps)]
    done = subprocess.run(command, env=os.environ | ALLOCATION, stdout=subprocess.PIPE, text=True, check=True)
    return Peak(side, length, steps, json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def main(
    out: options.Out,
    plot: Annotated[Path, typer.Option(dir_okay=False, help="SVG file to write.")],
) -> None:
    """Measure every point and draw them."""
    arguments = options.recorded(locals())
    peaks = [measure(side, length, steps) for length in LENGTHS for steps in STEPS for side in SIDES]
    result = ResultFile(
        provenance=Provenance.now(arguments, [0]),
        runs=[Run(benchmark=NAME, measured=asdict(one)) for one in peaks],
        figures=growth_figures(peaks),
    )
    result.write(out)
    write_atomic(plot, draw(peaks))
    options.show(result.figures)


if __name__ == "__main__":
    options.run(main)
